//! Real builds: make, cmake, autotools, meson, ccache; and what is refused, and what an interrupted build leaves.

mod builds;
mod case;
mod debian;
mod interrupted;
mod refusals;
mod rust;
