//! `-o name=value,...` as mount(8) passes it, and `mount.mirrorfs` as mount(8) calls it.

use std::ffi::OsString;
use std::path::Path;

/// What mount(8), fstab and systemd say to others, or what is the case anyway.
const IGNORED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "netdev",
    "default_permissions",
    "relatime",
    "norelatime",
    "strictatime",
    "lazytime",
    "nolazytime",
    "diratime",
    "nodiratime",
    "async",
];
/// What becomes a flag of the mount; see `OptionArgs::flags`.
const FLAGS: &[&str] = &[
    "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "atime", "noatime",
];

/// The elements of a list; a comma behind a backslash is part of its element.
pub fn split(list: &str) -> Vec<String> {
    let mut elements = vec![String::new()];
    let mut characters = list.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            (',', _) => elements.push(String::new()),
            ('\\', Some(',')) => {
                characters.next();
                if let Some(last) = elements.last_mut() {
                    last.push(',');
                }
            }
            _ => {
                if let Some(last) = elements.last_mut() {
                    last.push(character);
                }
            }
        }
    }
    elements.retain(|element| !element.is_empty());
    elements
}

/// The long options that the lists name. `known` has the options that there are.
///
/// # Errors
/// An option that is none, or a value where none belongs (or none where one does).
pub fn long_options(lists: &[String], known: &clap::Command) -> Result<Vec<OsString>, String> {
    let mut longs = Vec::new();
    for element in lists.iter().flat_map(|list| split(list)) {
        let (name, value) = match element.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (element.as_str(), None),
        };
        let for_others = name.starts_with("x-") || name.starts_with("X-") || name == "comment";
        if for_others || IGNORED.contains(&name) || FLAGS.contains(&name) {
            continue;
        }
        let long = name.replace('_', "-");
        let found = known
            .get_arguments()
            .find(|a| a.get_long() == Some(&long) && !a.is_hide_set());
        let takes_value = match found {
            Some(argument) => argument.get_action().takes_values(),
            None => return Err(format!("-o {name}: there is no such mount option")),
        };
        match (takes_value, value) {
            (true, Some(value)) => longs.push(OsString::from(format!("--{long}={value}"))),
            (false, None) => longs.push(OsString::from(format!("--{long}"))),
            (true, None) => return Err(format!("-o {name} needs a value: {name}=VALUE")),
            (false, Some(_)) => return Err(format!("-o {name} takes no value")),
        }
    }
    Ok(longs)
}

/// The arguments with `longs` right behind the word `mount`, so that what was given as a flag of
/// its own comes later and wins.
pub fn inserted(arguments: &[OsString], longs: Vec<OsString>) -> Vec<OsString> {
    // Nothing that takes a value can stand before the subcommand.
    let at = arguments
        .iter()
        .position(|argument| argument == "mount")
        .map_or(1, |at| at + 1);
    let (before, after) = arguments.split_at(at.min(arguments.len()));
    before
        .iter()
        .cloned()
        .chain(longs)
        .chain(after.iter().cloned())
        .collect()
}

/// Called as `mount.mirrorfs SOURCE MOUNTPOINT [-sfnv] [-o target=TARGET,...]`, as mount(8) does
/// for the type `mirrorfs`: the arguments of `mirrorfs mount`.
pub fn from_mount_helper(arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments
        .first()
        .and_then(|name| Path::new(name).file_name());
    if name.is_none_or(|name| name != "mount.mirrorfs") {
        return arguments;
    }
    let (mut places, mut options, mut flags) = (Vec::new(), Vec::new(), Vec::new());
    let mut target = None;
    let mut rest = arguments.into_iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("-o") => {
                let list = rest.next().unwrap_or_default();
                for element in split(&list.to_string_lossy()) {
                    match element.strip_prefix("target=") {
                        Some(named) => target = Some(OsString::from(named)),
                        None => options.push(element.replace(',', "\\,")),
                    }
                }
            }
            Some("-v") => flags.push(argument),
            Some("-t" | "-N") => drop(rest.next()),
            Some("-s" | "-f" | "-n") => {}
            _ => places.push(argument),
        }
    }
    let mut result: Vec<OsString> = vec!["mirrorfs".into(), "mount".into()];
    result.extend(flags);
    if !options.is_empty() {
        result.push("-o".into());
        result.push(options.join(",").into());
    }
    result.push("--".into());
    let mut places = places.into_iter();
    result.extend(places.next());
    // Without a target nothing follows, and the parser says that it is missing.
    if let Some(target) = target {
        result.push(target);
        result.extend(places);
    }
    result
}
