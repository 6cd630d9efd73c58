#![no_main]
livegraft_fuzz::fuzz!("extract");
