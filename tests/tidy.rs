//! The rules of the tree: which module may see which, how long a file may get, what lies at the
//! top, and that nothing of one machine is in it. `docs/architecture.md` has the rules as text.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 600;

/// What each module may use of the others, besides `model` and `limits`, which all may.
const MAY_SEE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("limits", &[]),
    ("clock", &[]),
    ("config", &[]),
    ("exclude", &[]),
    ("wire", &[]),
    ("disk", &[]),
    ("records", &["disk", "wire"]),
    ("state", &["disk", "wire"]),
    ("journal", &["records", "disk"]),
    (
        "backing",
        &["journal", "records", "disk", "exclude", "clock", "config"],
    ),
    ("mount", &["backing", "config"]),
    ("plan", &["journal", "records", "disk", "wire"]),
    ("sender", &["wire"]),
    ("transport", &[]),
    ("replica", &["records", "wire", "disk"]),
    (
        "reconcile",
        &["backing", "journal", "records", "disk", "exclude"],
    ),
    ("control", &["config"]),
    (
        "cli",
        &["runtime", "control", "replica", "config", "transport"],
    ),
];
/// The composition root sees all.
const SEES_ALL: &[&str] = &["runtime", "lib", "main"];

const TOP: &[&str] = &[
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "clippy.toml",
    "docs",
    "rustfmt.toml",
    "scripts",
    "src",
    "tests",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files of the project below `place`, as paths from the root.
fn files(place: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from(place)];
    while let Some(path) = open.pop() {
        let full = root().join(&path);
        if full.is_dir() {
            let entries = fs::read_dir(&full).expect("a directory of the project");
            open.extend(entries.map(|entry| path.join(entry.expect("an entry").file_name())));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_default()
}

/// The modules of the crate that a line of code names: `crate::x` or `crate::{x::.., y}`.
fn named(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let word = |text: &str| -> String {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => names.push(word(rest)),
            Some(list) => {
                let mut depth = 0;
                let mut start = true;
                for (at, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && !c.is_whitespace() => {
                            names.push(word(&list[at..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

#[test]
fn modules_see_only_what_they_may() {
    let mut wrong = Vec::new();
    for path in files("src") {
        let Some(module) = path.iter().nth(1).map(Path::new).and_then(Path::file_stem) else {
            continue;
        };
        let module = module.to_string_lossy().into_owned();
        if SEES_ALL.contains(&module.as_str()) {
            continue;
        }
        let Some((_, may)) = MAY_SEE.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!(
                "{}: there is no rule for module {module}",
                path.display()
            ));
            continue;
        };
        // A test may build what it tests from anything.
        let source = text(&path);
        let is_test = path
            .file_stem()
            .is_some_and(|stem| stem.to_string_lossy().contains("test"));
        let code = if is_test {
            ""
        } else {
            source
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap_or("")
        };
        for (number, line) in code.lines().enumerate() {
            for name in named(line) {
                let common = ["model", "limits"].contains(&name.as_str()) || name == module;
                let is_module = MAY_SEE.iter().any(|(known, _)| *known == name)
                    || SEES_ALL.contains(&name.as_str());
                if is_module && !common && !may.contains(&name.as_str()) {
                    let at = format!("{}:{}", path.display(), number + 1);
                    wrong.push(format!("{at}: {module} may not see {name}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_short() {
    let long: Vec<String> = ["src", "tests", "scripts"]
        .iter()
        .flat_map(|place| files(place))
        .map(|path| (text(&path).lines().count(), path))
        .filter(|(lines, path)| *lines > FILE_LINES_MAX && !path.starts_with("tests/compat"))
        .map(|(lines, path)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(
        long.is_empty(),
        "longer than {FILE_LINES_MAX} lines:\n{}",
        long.join("\n")
    );
}

#[test]
fn the_top_holds_what_it_should() {
    let ignored = ["target", ".git", "proptest-regressions"];
    let found: BTreeSet<String> = fs::read_dir(root())
        .expect("the project")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| !ignored.contains(&name.as_str()))
        .collect();
    let expected: BTreeSet<String> = TOP.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(found, expected);
}

#[test]
fn nothing_of_one_machine_is_in_it() {
    // Spelt so that this file does not name them.
    let marks = [["/ro", "ot/"], ["/Us", "ers/"], ["/wo", "rk/"]];
    let mut wrong = Vec::new();
    for path in ["src", "tests", "scripts", "docs", ".ci"]
        .iter()
        .flat_map(|place| files(place))
    {
        for (number, line) in text(&path).lines().enumerate() {
            for mark in &marks {
                if line.contains(&mark.concat()) {
                    wrong.push(format!("{}:{}: {line}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_package_has_a_line_on_why() {
    let manifest = text(Path::new("Cargo.toml"));
    let reasons = text(Path::new("docs/dependencies.md"));
    let mut inside = false;
    let mut missing = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.contains("dependencies]");
        } else if inside
            && let Some((name, _)) = line.split_once(" =")
            && !reasons.contains(&format!("`{name}`"))
        {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "docs/dependencies.md lacks {missing:?}");
}

#[test]
fn names_of_modules_are_found_in_code() {
    assert_eq!(named("use crate::wire::Frame;"), ["wire"]);
    assert_eq!(
        named("use crate::{disk, model::{A, B}, wire::C};"),
        ["disk", "model", "wire"]
    );
    assert!(named("// crate::wire is not seen").is_empty());
}
