//! Every fuzz target: the property that has the target's name.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    portcullis::properties::hold(env!("CARGO_BIN_NAME"), input);
});
