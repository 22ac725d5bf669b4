//! Command lines.

use super::*;
use crate::config::{Local, OnDegraded, Remote};
use std::path::PathBuf;
use std::time::Duration;

fn words(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(OsString::from).collect()
}

fn mount(text: &str) -> Result<mount::Args, clap::Error> {
    match parse(words(text))?.1.command {
        Command::Mount(args) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
    let help = command().render_long_help().to_string();
    for (exit, meaning) in Exit::ALL {
        assert!(
            help.contains(&format!("{:>2}  {meaning}", exit.code())),
            "{help}"
        );
    }
}

#[test]
fn options_are_understood() {
    let args = mount(
        "mirrorfs mount /s h:/t /m --local 2s --remote durable --remote-timeout 500ms \
         --on-degraded continue -p 2222 -i /k1 -i /k2 --known-hosts /kh --accept-new-host-key \
         --remote-path /opt/mirrorfs --allow-other --state-dir /st --exclude *.o --exclude !a.o \
         --exclude-from /ex --adopt --fake-super -f",
    )
    .expect("it parses");
    assert_eq!(args.mountpoint, Some(PathBuf::from("/m")));
    assert!(args.foreground);
    let options = args.options.resolve().expect("it resolves");
    assert_eq!(options.local, Local::Interval(Duration::from_secs(2)));
    assert_eq!(options.remote, Remote::Durable);
    assert_eq!(options.remote_timeout, Duration::from_millis(500));
    assert_eq!(options.on_degraded, OnDegraded::Continue);
    assert_eq!(options.port, Some(2222));
    assert_eq!(options.identities, [PathBuf::from("/k1"), "/k2".into()]);
    assert_eq!(options.known_hosts, [PathBuf::from("/kh")]);
    assert_eq!(options.excludes, ["*.o", "!a.o"]);
    assert!(options.accept_new_host_key && options.allow_other && options.adopt);
    assert!(options.fake_super && !options.allow_empty_source && !options.allow_changed_source);
    let plain = mount("mirrorfs mount s t")
        .expect("it parses")
        .options
        .resolve()
        .expect("ok");
    assert_eq!((plain.local, plain.remote), (Local::Os, Remote::Async));
    assert_eq!(plain.remote_timeout, Duration::from_secs(30));
}

#[test]
fn mount_options_are_the_long_options() {
    let args = mount(
        "mirrorfs mount /s h:/t /m -o rw,nosuid,nodev,noauto,user,_netdev,x-systemd.automount \
         -o local=close,allow_other,identity=/k1,identity=/k2,port=23,exclude=a\\,b -i /k3 \
         --local os -v",
    )
    .expect("it parses");
    let options = args.options.resolve().expect("it resolves");
    assert_eq!(options.local, Local::Os, "a flag of its own wins");
    assert_eq!(options.port, Some(23));
    assert!(options.allow_other);
    assert_eq!(options.excludes, ["a,b"]);
    assert_eq!(options.identities.len(), 3);
    assert!(options.flags.no_suid && options.flags.no_dev && !options.flags.read_only);
    let args = mount("mirrorfs -v mount /s h:/t -o ro").expect("it parses");
    assert!(args.options.resolve().expect("it resolves").flags.read_only);
}

#[test]
fn wrong_command_lines_are_refused() {
    for wrong in [
        "mirrorfs",
        "mirrorfs mount /s",
        "mirrorfs mount /s /t /m /x",
        "mirrorfs mount /s /t --local never",
        "mirrorfs mount /s /t --remote sync",
        "mirrorfs mount /s /t -p 0",
        "mirrorfs mount /s /t -p 70000",
        "mirrorfs mount /s /t --on-degraded maybe",
        "mirrorfs mount /s /t --remote-timeout soon",
        "mirrorfs mount /s /t -o nonsense",
        "mirrorfs mount /s /t -o local",
        "mirrorfs mount /s /t -o adopt=yes",
        "mirrorfs mount /s /t -o ready_descriptor=5",
        "mirrorfs mount /s /t -o local=never",
        "mirrorfs wait",
        "mirrorfs umount",
        "mirrorfs drain /p --timeout -5",
        "mirrorfs serve /p",
        "mirrorfs frobnicate",
    ] {
        let error = parse(words(wrong)).expect_err(wrong);
        assert_eq!(error.exit_code(), i32::from(Exit::Usage.code()), "{wrong}");
    }
}

#[test]
fn mount_8_calls_it_as_a_helper() {
    let args = mount("/sbin/mount.mirrorfs /s /m -n -o rw,target=h:/t,local=close").expect("ok");
    assert_eq!(
        (args.source, args.target),
        (PathBuf::from("/s"), "h:/t".to_owned())
    );
    assert_eq!(args.mountpoint, Some(PathBuf::from("/m")));
    assert_eq!(args.options.local, Some(Local::Close));
    assert!(
        mount("/sbin/mount.mirrorfs /s /m -o rw").is_err(),
        "a target is missing"
    );
}

#[test]
fn the_other_commands_take_their_options() {
    for right in [
        "mirrorfs status",
        "mirrorfs status /p --json",
        "mirrorfs wait /p --timeout 5",
        "mirrorfs drain /p --timeout 1m --json",
        "mirrorfs umount /p --timeout 1.5s --json --lazy",
        "mirrorfs recover /r",
        "mirrorfs serve --stdio -- /r",
        "mirrorfs -vv status",
    ] {
        assert!(parse(words(right)).is_ok(), "{right}");
    }
    let (_, cli) = parse(words("mirrorfs umount /p --timeout 1.5s")).expect("ok");
    let Command::Umount(args) = cli.command else {
        panic!()
    };
    assert_eq!(args.timeout, Some(Duration::from_millis(1500)));
}
