//! Compiles `proto/onnx.proto` with protox, so that no `protoc` is needed, and notes facts of the build.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    let descriptors = protox::compile(["proto/onnx.proto"], ["proto"])?;
    prost_build::Config::new()
        .bytes(["."]) // tensor payloads stay inside the memory-mapped file
        .compile_fds(descriptors)?;
    build_facts();
    Ok(())
}

/// What `qonnx --version` tells of the build.
fn build_facts() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let compiler = std::process::Command::new(variable("RUSTC")).arg("--version").output();
    let compiler =
        compiler.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string()).unwrap_or_default();
    println!("cargo:rustc-env=QONNX_TARGET={}", variable("TARGET"));
    println!("cargo:rustc-env=QONNX_PROFILE={}", variable("PROFILE"));
    println!("cargo:rustc-env=QONNX_RUSTC={compiler}");
}
