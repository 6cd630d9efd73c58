//! Where an object lies in a binary, proven.
