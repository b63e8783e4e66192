//! Compiles the schema without a `protoc` binary. The compiled schema is kept too: servers answer reflection with it.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["types", "job", "lease", "trust"].map(|area| format!("schema/flatbed/{area}/v1/{area}.proto"));
    println!("cargo:rerun-if-changed=schema");
    let mut compiler = protox::Compiler::new(["schema"])?;
    compiler.include_imports(true).open_files(files)?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("flatbed.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .bytes(".")
        // Its text form would hold a private key: `convert_trust` has one that does not.
        .skip_debug([".flatbed.trust.v1.SigningKey"])
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
