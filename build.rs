//! Compiles `proto/onnx.proto` with protox, so that no `protoc` is needed, and notes facts of the build.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    let descriptors = protox::compile(["proto/onnx.proto"], ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("schema.rs"), schema(&descriptors.file))?;
    prost_build::Config::new()
        .bytes(["."]) // tensor payloads stay inside the memory-mapped file
        .compile_fds(descriptors)?;
    build_facts();
    Ok(())
}

/// Which fields of which message hold text or messages, for whoever walks a file without decoding it.
fn schema(files: &[prost_types::FileDescriptorProto]) -> String {
    fn collect<'a>(
        prefix: &str,
        messages: &'a [prost_types::DescriptorProto],
        found: &mut Vec<(String, &'a prost_types::DescriptorProto)>,
    ) {
        for message in messages {
            let name = format!("{prefix}.{}", message.name());
            collect(&name, &message.nested_type, found);
            found.push((name, message));
        }
    }
    let mut messages = Vec::new();
    for file in files {
        collect(&format!(".{}", file.package()), &file.message_type, &mut messages);
    }
    let mut text = String::from("/// Every message of the schema.\npub static SCHEMA: &[Message] = &[\n");
    for (name, message) in &messages {
        let kind = |field: &prost_types::FieldDescriptorProto| {
            let index = messages.iter().position(|(name, _)| name == field.type_name());
            match (field.r#type(), index) {
                (prost_types::field_descriptor_proto::Type::String, _) => Some("Kind::Text".to_string()),
                (prost_types::field_descriptor_proto::Type::Message, Some(i)) => {
                    Some(format!("Kind::Message({i})"))
                }
                _ => None,
            }
        };
        let fields = message.field.iter().filter_map(|f| Some(format!("({}, {})", f.number(), kind(f)?)));
        let fields = fields.collect::<Vec<_>>().join(", ");
        let count = message.field.len();
        text += &format!("    Message {{ name: \"{name}\", count: {count}, fields: &[{fields}] }},\n");
    }
    text + "];\n"
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
