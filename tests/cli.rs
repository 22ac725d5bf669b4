//! The program as a person meets it when something is wrong: a clear message, what to do next,
//! the documented exit code, and nothing left behind. What needs a mount is in `tests/mounted`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Bench {
    root: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench {
            root: tempfile::tempdir().expect("a directory"),
        };
        std::fs::create_dir(bench.at("src")).expect("made");
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().canonicalize().expect("a path").join(name)
    }

    /// Runs the program in the bench, with a state root and a home of its own.
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mirrorfs"))
            .args(arguments)
            .current_dir(self.root.path())
            .env("HOME", self.root.path())
            .env("MIRRORFS_STATE_DIR", self.at("state"))
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("SSH_ASKPASS")
            .env_remove("DISPLAY")
            .output()
            .expect("it runs")
    }

    /// Runs it and expects it to fail with this code, a cause and a next step.
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.starts_with("mirrorfs: "), "{arguments:?}: {text}");
        assert!(
            text.lines().any(|line| line.starts_with("  next: ")),
            "{arguments:?}: {text}"
        );
        assert!(!text.contains("panicked"), "{text}");
        text
    }
}

fn entries(path: &Path) -> usize {
    std::fs::read_dir(path).map_or(0, Iterator::count)
}

#[test]
fn help_has_the_exit_codes() {
    let bench = Bench::new();
    let help = bench.run(&["--help"]);
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(
        help.status.success() && text.contains("Exit codes:"),
        "{text}"
    );
    for command in [
        "mount", "status", "wait", "drain", "umount", "recover", "serve",
    ] {
        assert!(text.contains(command), "{text}");
        let help = bench.run(&[command, "--help"]);
        assert!(help.status.success(), "{command}");
    }
    let version = bench.run(&["--version"]);
    assert!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_2() {
    let bench = Bench::new();
    for wrong in [
        &["mount", "src"][..],
        &["mount", "src", "dst", "--local", "never"],
        &["mount", "src", "dst", "-o", "nonsense=1"],
        &["umount"],
        &["serve", "dst"],
        &[],
    ] {
        let output = bench.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(!output.stderr.is_empty());
    }
    for wrong in ["ftp://host/x", "host:", "ssh://host", "-oProxyCommand=x:/y"] {
        let text = bench.fails(2, &["mount", "src", "--", wrong]);
        assert!(text.contains(wrong.trim_start_matches('-')), "{text}");
    }
    bench.fails(2, &["mount", "src", "dst", "--exclude", "["]);
    assert_eq!(entries(&bench.at("dst")), 0);
}

#[test]
fn places_that_do_not_fit_are_12() {
    let bench = Bench::new();
    std::fs::write(bench.at("file"), "x").expect("written");
    std::fs::create_dir(bench.at("full")).expect("made");
    std::fs::write(bench.at("full/file"), "x").expect("written");
    for (arguments, named) in [
        (&["mount", "none", "dst"][..], "none"),
        (&["mount", "file", "dst"], "file"),
        (&["mount", "src", "src/replica"], "inside"),
        (&["mount", "src", "src"], "inside"),
        (&["mount", "full", "."], "inside"),
        (&["mount", "src", "dst", "none"], "none"),
        (&["mount", "src", "dst", "full"], "not empty"),
        (&["mount", "src", "file"], "file"),
    ] {
        let text = bench.fails(12, arguments);
        assert!(text.contains(named), "{arguments:?}: {text}");
    }
    assert_eq!(entries(&bench.at("src")), 0, "nothing was made");
    assert!(!bench.at("dst").exists());
}

#[test]
fn a_source_that_may_not_be_read_is_12() {
    if rustix_is_root() {
        return; // root reads everything
    }
    let bench = Bench::new();
    let closed = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(bench.at("src"), closed).expect("set");
    bench.fails(12, &["mount", "src", "dst"]);
}

fn rustix_is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
}

#[test]
fn what_is_not_mounted_is_7() {
    let bench = Bench::new();
    for arguments in [
        &["status", "src"][..],
        &["status", "src", "--json"],
        &["wait", "src"],
        &["drain", "src"],
        &["umount", "src"],
        &["umount", "/nonexistent/path"],
    ] {
        bench.fails(7, arguments);
    }
    // An earlier mount left its description behind, but nobody serves it.
    let state = bench.at("state/src-0123456789abcdef");
    std::fs::create_dir_all(&state).expect("made");
    let source = bench.at("src").display().to_string();
    let described = serde_json::json!({
        "version": 1, "source": source, "target": "h:/r", "mountpoint": source, "pid": 1,
        "state_dir": state, "options": {},
    });
    std::fs::write(state.join("mirror.json"), described.to_string()).expect("written");
    bench.fails(7, &["umount", "src"]);
    bench.fails(7, &["wait", "src/below"]);
    let status = bench.run(&["status", "src", "--json"]);
    assert_eq!(status.status.code(), Some(7));
    let json: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(
        (&json["target"], &json["mounted"]),
        (&"h:/r".into(), &false.into())
    );
}

#[test]
fn a_host_that_cannot_be_reached_is_5() {
    let bench = Bench::new();
    // Nothing listens at port 1 of this machine.
    bench.fails(5, &["mount", "src", "ssh://nobody@127.0.0.1:1/r"]);
    bench.fails(5, &["mount", "src", "h:/r", "-e", "/nonexistent/ssh"]);
    bench.fails(5, &["mount", "src", "h:/r", "-e", "false"]);
    bench.fails(5, &["mount", "src", "h:/r", "-i", "/nonexistent/key"]);
    // Nobody stays behind.
    bench.fails(7, &["status", "src"]);
}

#[test]
fn a_target_that_is_refused_is_4_or_9() {
    let bench = Bench::new();
    std::fs::create_dir(bench.at("full")).expect("made");
    std::fs::write(bench.at("full/file"), "x").expect("written");
    let text = bench.fails(4, &["mount", "src", "full"]);
    assert!(text.contains("--adopt"), "{text}");
    assert_eq!(std::fs::read(bench.at("full/file")).expect("read"), b"x");
    bench.fails(9, &["mount", "src", "/proc/self/replica"]);
}

#[test]
fn recover_refuses_what_is_no_replica() {
    let bench = Bench::new();
    let output = bench.run(&["recover", "src"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("  next: "),
        "{text}"
    );
    assert_eq!(entries(&bench.at("src")), 0, "nothing was made");
    bench.fails(7, &["recover", "none"]);
}
