//! Which compiler calls a build makes, and how to make them again.
