#![no_main]
livegraft_fuzz::fuzz!("object");
