//! Compiles `proto/onnx.proto` with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    let descriptors = protox::compile(["proto/onnx.proto"], ["proto"])?;
    prost_build::Config::new()
        .bytes(["."]) // tensor payloads stay inside the memory-mapped file
        .compile_fds(descriptors)?;
    Ok(())
}
