//! Compiles the schema without a `protoc` binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["types", "job", "lease"].map(|area| format!("schema/flatbed/{area}/v1/{area}.proto"));
    println!("cargo:rerun-if-changed=schema");
    let descriptors = protox::compile(files, ["schema"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
