//! Help, messages, completions, and what build systems need.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{args, digits, model, qonnx, samples, tempdir};

#[test]
fn help_names_every_command_in_a_group() {
    let help = qonnx(args!["--help"]).code(0).out;
    for group in ["Make:", "Check:", "Look:", "Shell:", "Options:", "Examples:", "Exit codes:"] {
        assert!(help.contains(group), "no `{group}` in\n{help}");
    }
    assert!(!help.contains("Other:\n"), "a new command wants a group:\n{help}");
    for command in ["compile", "compare", "run", "explain", "inspect", "diff", "ops", "completions", "man"] {
        assert!(help.lines().any(|l| l.trim_start().starts_with(command)), "no `{command}` in\n{help}");
        qonnx(args![command, "--help"]).code(0).prints(&["Usage: qonnx"]);
    }
    qonnx(args!["compile", "--help"]).code(0).prints(&["Calibration:", "Build systems:", "Examples:"]);
}

#[test]
fn typos_get_suggestions() {
    qonnx(args!["compil"]).code(2).says(&["compile"]);
    qonnx(args!["compile", "a", "b", "--calb", "c"]).code(2).says(&["--calib"]);
    qonnx(args!["compile", "a", "b", "--only-ops", "Cnov"]).code(2).says(&["did you mean `Conv`?"]);
    qonnx(args!["compile", "a", "b", "--only-ops", "Conv,Xyzzyx"]).code(2).says(&["`qonnx ops` lists them"]);
}

#[test]
fn version_tells_of_the_build() {
    let version = qonnx(args!["--version"]).code(0).out;
    assert!(version.starts_with(&format!("qonnx {}\n", env!("CARGO_PKG_VERSION"))), "{version}");
    for fact in ["target   ", "profile  ", "compiler rustc "] {
        assert!(version.contains(fact), "no `{fact}` in {version}");
    }
    assert_eq!(qonnx(args!["-V"]).code(0).out.lines().count(), 1);
}

#[test]
fn completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        qonnx(args!["completions", shell]).code(0).prints(&["compile", "calib"]);
    }
    qonnx(args!["man"]).code(0).prints(&[".TH qonnx", "compile"]);
    qonnx(args!["man", "compile"]).code(0).prints(&[".TH qonnx-compile", "calib"]);
    qonnx(args!["man", "nothing"]).code(1).one_error();
}

#[test]
fn messages_for_programs() {
    let dir = tempdir();
    let lines = |err: &str| -> Vec<Value> { err.lines().map(|l| serde_json::from_str(l).unwrap()).collect() };
    let out = dir.path().join("out.onnx");
    let outcome = qonnx(args!["compile", digits(), out, "--message-format", "json"]).code(0);
    let found = lines(&outcome.err);
    assert_eq!(found[0]["level"], "warning");
    assert!(found.iter().any(|m| m["level"] == "note" && m["message"].as_str().unwrap().starts_with("size")));
    let outcome = qonnx(args!["--message-format", "json", "inspect", dir.path().join("none.onnx")]).code(1);
    let found = lines(&outcome.err);
    assert_eq!((found.len(), &found[0]["level"], &found[0]["code"]), (1, &"error".into(), &1.into()));
}

#[test]
fn no_colour_without_a_terminal() {
    let err = qonnx(args!["inspect", "none.onnx"]).code(1).err;
    assert!(!err.contains('\x1b'), "{err:?}");
    let help = Command::new(env!("CARGO_BIN_EXE_qonnx")).arg("--help").env("NO_COLOR", "1").output().unwrap();
    assert!(!help.stdout.contains(&0x1b));
}

#[test]
fn depfiles_name_everything_that_was_read() {
    let dir = tempdir();
    let calib = dir.path().join("my samples");
    std::fs::create_dir(&calib).unwrap();
    std::fs::copy(samples().join("00.npz"), calib.join("00.npz")).unwrap();
    let (out, rule) = (dir.path().join("out.onnx"), dir.path().join("out.d"));
    qonnx(args!["compile", digits(), out, "--calib", calib, "--depfile", rule, "-q"]).code(0);
    let text = std::fs::read_to_string(&rule).unwrap();
    assert!(text.starts_with(&format!("{}: \\\n", out.display())), "{text}");
    for part in ["digits.onnx", "my\\ samples/00.npz"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    // What Make makes of it: the target is up to date, and is not once a sample is newer.
    std::fs::write(
        dir.path().join("Makefile"),
        format!("include out.d\n{}:\n\t@echo stale\n", out.display()),
    )
    .unwrap();
    let Ok(make) = Command::new("make").arg("-s").arg(&out).current_dir(dir.path()).output() else { return };
    assert!(!String::from_utf8_lossy(&make.stdout).contains("stale"), "{make:?}");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(100);
    std::fs::File::options().append(true).open(calib.join("00.npz")).unwrap().set_modified(later).unwrap();
    let make = Command::new("make").arg("-s").arg(&out).current_dir(dir.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&make.stdout).contains("stale"), "{make:?}");
}

fn modified(path: &Path) -> std::time::SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}

#[test]
fn if_changed_leaves_an_output_alone() {
    let dir = tempdir();
    let calib = dir.path().join("calib");
    std::fs::create_dir(&calib).unwrap();
    for name in ["00.npz", "01.npz"] {
        std::fs::copy(samples().join(name), calib.join(name)).unwrap();
    }
    let out = dir.path().join("out.onnx");
    let compile = |more: &[&str]| {
        let input = digits();
        let mut parts: Vec<&dyn AsRef<std::ffi::OsStr>> =
            args!["compile", input, out, "--calib", calib, "--if-changed"].to_vec();
        parts.extend(more.iter().map(|m| m as &dyn AsRef<std::ffi::OsStr>));
        qonnx(&parts).code(0)
    };
    assert!(!compile(&[]).err.contains("unchanged"));
    let first = (modified(&out), std::fs::read(&out).unwrap());
    compile(&[]).says(&["unchanged"]);
    assert_eq!(modified(&out), first.0);
    // Another option, and another sample, make another result.
    assert!(!compile(&["--calibrator", "minmax"]).err.contains("unchanged"));
    compile(&["--calibrator", "minmax"]).says(&["unchanged"]);
    std::fs::copy(samples().join("02.npz"), calib.join("01.npz")).unwrap();
    assert!(!compile(&["--calibrator", "minmax"]).err.contains("unchanged"));
    // A model that carries no provenance is compared byte by byte.
    let plain = model(
        &dir,
        "plain.onnx",
        r#"<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu (x) }"#,
    );
    let copy = dir.path().join("copy.onnx");
    let none = || qonnx(args!["compile", plain, copy, "--mode", "none", "--if-changed"]).code(0);
    none();
    let first = modified(&copy);
    none().says(&["unchanged"]);
    assert_eq!(modified(&copy), first);
}

/// The command with nobody left to hear what it says.
fn unheard(args: &[&dyn AsRef<std::ffi::OsStr>]) -> Command {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_qonnx"));
    command.args(args.iter().map(|arg| arg.as_ref())).stderr(writer);
    command
}

#[test]
fn messages_that_nobody_hears_change_nothing() {
    let dir = tempdir();
    let out = dir.path().join("out.onnx");
    assert_eq!(unheard(args!["compile", digits(), out]).status().unwrap().code(), Some(0));
    assert!(out.is_file());
    assert_eq!(
        unheard(args!["compile", dir.path().join("none.onnx"), out]).status().unwrap().code(),
        Some(1)
    );
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_run_that_nobody_hears() {
    let dir = tempdir();
    let out = dir.path().join("out.onnx");
    let mut run = unheard(args![
        "train",
        digits(),
        out,
        "--data",
        samples(),
        "--epochs",
        "100000",
        "--patience",
        "100000"
    ])
    .spawn()
    .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(Command::new("kill").args(["-TERM", &run.id().to_string()]).status().unwrap().success());
    let ended = (0..200).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        run.try_wait().unwrap()
    });
    let Some(ended) = ended else {
        run.kill().unwrap();
        panic!("it goes on");
    };
    assert_eq!(ended.code(), Some(130));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was left");
}

/// However long calibration takes, some interrupt comes after it; those that come before it leave nothing.
#[cfg(unix)]
#[test]
fn an_interrupt_ends_tuning_with_the_best_so_far() {
    let dir = tempdir();
    let layers: Vec<String> =
        (0..12).map(|i| format!("m{i} = MatMul (r{i}, w{i}) r{} = Relu (m{i})", i + 1)).collect();
    let weights: Vec<String> =
        (0..12).map(|i| format!("float[320,320] w{i} = random({i}, -0.1, 0.1)")).collect();
    let text = format!(
        r#"<ir_version: 8, opset_import: ["" : 17]> g (float[48,320] r0) => (float[48,320] r12) <{}> {{ {} }}"#,
        weights.join(", "),
        layers.join(" ")
    );
    let source = model(&dir, "in.onnx", &text);
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    for sample in 0..60 {
        let value = |(i, j)| ((i * 320 + j + sample * 104_729) * 7919 % 2003) as f32 / 1001.0 - 1.0;
        ndarray_npy::write_npy(
            data.join(format!("{sample}.npy")),
            &ndarray::Array2::from_shape_fn((48, 320), value),
        )
        .unwrap();
    }
    let (out, json) = (dir.path().join("out.onnx"), dir.path().join("report.json"));
    let ended_early = (0..8).any(|attempt| {
        let _ = std::fs::remove_file(&out);
        let best = args![
            "compile",
            source,
            out,
            "--calib",
            data,
            "--effort",
            "best",
            "--json",
            json,
            "--if-changed"
        ];
        let mut run = Command::new(env!("CARGO_BIN_EXE_qonnx"));
        let mut run = run.args(best.iter().map(|arg| arg.as_ref())).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200 << attempt));
        assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
        let code = run.wait().unwrap().code();
        assert_eq!(out.exists(), code == Some(0));
        assert!(matches!(code, Some(0 | 130)), "{code:?}");
        let report = std::fs::read(&json).ok().filter(|_| out.exists());
        report
            .is_some_and(|r| serde_json::from_slice::<Value>(&r).unwrap()["quantized"]["ended_early"] == true)
    });
    assert!(ended_early);
    qonnx(args!["compare", source, out, "--data", data, "--min-sqnr", "15"]).code(0);
    // It is not what its options make of the model: that is still to be done.
    let again =
        args!["compile", source, out, "--calib", data, "--effort", "best", "--json", json, "--if-changed"];
    qonnx(again).code(0);
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["quantized"]["ended_early"], false);
    assert!(!report["quantized"]["nodes"].as_array().unwrap().is_empty());
}
