//! Compiles `proto/` in pure Rust, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTOS: [&str; 2] = ["proto/cri.proto", "proto/containerd.proto"];
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let mut config = prost_build::Config::new();
    // AuthConfig carries passwords; no generated type is ever printed.
    config.skip_debug(["."]);
    config.compile_fds(descriptors)?;
    Ok(())
}
