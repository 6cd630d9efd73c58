//! What changed between two objects of one source file, function by function.
