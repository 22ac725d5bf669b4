//! Frames of protocol version 1.

use mirrorfs::model::{
    Attributes, BlockHash, Body, Commit, Entry, EpochId, Extent, FileId, Fixed, Fragment,
    Incarnation, Name, Object, RootHash, SessionId, Timestamp, Uuid,
};
use mirrorfs::wire::{
    Hello, Message, RecordItem, Refusal, ToPrimary, ToReplica, Welcome, decode, encode,
};
use std::fmt::{Debug, Write};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/compat/frames.hex");

fn object() -> Object {
    let mtime = Timestamp {
        secs: -5,
        nanos: 999_999_999,
    };
    let attributes = Attributes {
        mode: 0o4755,
        uid: 1000,
        gid: 65_534,
        mtime,
    };
    let pair = |name: &str, value: &[u8]| (name.as_bytes().into(), value.into());
    let xattrs = [
        pair("user.a", b"1"),
        pair("system.posix_acl_access", b"\x02\0\0\0"),
    ];
    Object {
        fixed: Fixed::File,
        attributes,
        size: 70_000,
        xattrs: xattrs.into(),
    }
}

fn entries() -> Vec<(&'static str, Entry, Vec<u8>)> {
    let fragment = |offset, length, body, blocks: &[u8]| {
        let blocks = blocks.iter().map(|&byte| BlockHash([byte; 32])).collect();
        let extent = Extent::new(offset, length);
        Entry::Fragment(Fragment {
            file: FileId(300),
            extent,
            body,
            blocks,
        })
    };
    let bind = |object| Entry::Binding {
        parent: FileId::ROOT,
        name: Name::new(b"caf\xc3\xa9\xff").expect("a name"),
        object,
    };
    let copy = Body::Copy {
        from: FileId(4),
        offset: 12,
    };
    let text = b"all work and no play makes jack a dull boy\n".repeat(30);
    let length = text.len() as u64;
    vec![
        (
            "stage-bytes",
            fragment(65_530, 10, Body::Bytes, &[1, 2]),
            b"0123456789".to_vec(),
        ),
        (
            "stage-bytes-packed",
            fragment(0, length, Body::Bytes, &[1]),
            text,
        ),
        (
            "stage-hole",
            fragment(0, 1 << 40, Body::Hole, &[]),
            Vec::new(),
        ),
        (
            "stage-hole-part",
            fragment(4096, 4096, Body::Hole, &[7]),
            Vec::new(),
        ),
        (
            "stage-copy",
            fragment(131_072, 65_536, copy, &[8]),
            Vec::new(),
        ),
        ("stage-bind", bind(Some(FileId(2))), Vec::new()),
        ("stage-unbind", bind(None), Vec::new()),
    ]
}

fn objects() -> Vec<(&'static str, Entry, Vec<u8>)> {
    let kind = |fixed| Entry::Object {
        id: FileId(9),
        object: Object {
            fixed,
            size: 0,
            ..object()
        },
    };
    vec![
        (
            "stage-file",
            Entry::Object {
                id: FileId(2),
                object: object(),
            },
            Vec::new(),
        ),
        ("stage-directory", kind(Fixed::Directory), Vec::new()),
        (
            "stage-symlink",
            kind(Fixed::Symlink(b"../a".as_slice().into())),
            Vec::new(),
        ),
        ("stage-fifo", kind(Fixed::Fifo), Vec::new()),
        ("stage-socket", kind(Fixed::Socket), Vec::new()),
        ("stage-block", kind(Fixed::BlockDevice(0x0801)), Vec::new()),
        ("stage-char", kind(Fixed::CharDevice(0x0103)), Vec::new()),
    ]
}

fn to_replica() -> Vec<(&'static str, ToReplica, Vec<u8>)> {
    let hello = Hello {
        version: 1,
        program: "0.1.0".into(),
        primary: Uuid([1; 16]),
        replica: Some(Uuid([2; 16])),
        incarnation: Incarnation(3),
        session: SessionId(4),
        adopt: true,
        fake_super: false,
    };
    let commit = Commit {
        epoch: EpochId(300),
        parent: EpochId(299),
        incarnation: Incarnation(3),
        sealed_at: Timestamp {
            secs: 1_700_000_000,
            nanos: 1,
        },
        consistent: true,
        entries: 17,
        digest: [9; 32],
    };
    let staged = entries().into_iter().chain(objects()).enumerate().map(
        |(sequence, (name, entry, bytes))| {
            (
                name,
                ToReplica::Stage {
                    sequence: sequence as u64,
                    entry,
                },
                bytes,
            )
        },
    );
    let plain = [
        ("hello", ToReplica::Hello(hello)),
        ("truncate", ToReplica::Truncate { keep: 5 }),
        ("commit", ToReplica::Commit(commit)),
        ("apply", ToReplica::Apply),
        ("fetch-records", ToReplica::FetchRecords),
        ("ping", ToReplica::Ping(6)),
        ("goodbye", ToReplica::Goodbye),
    ];
    plain
        .map(|(name, message)| (name, message, Vec::new()))
        .into_iter()
        .chain(staged)
        .collect()
}

fn to_primary() -> Vec<(&'static str, ToPrimary)> {
    let welcome = Welcome {
        version: 1,
        program: "0.1.0".into(),
        replica: Uuid([2; 16]),
        fresh: true,
        durable: EpochId(300),
        digest: [9; 32],
        applied: EpochId(299),
        staged: 12,
        staged_by: SessionId(3),
        consistent: false,
        privileged: true,
    };
    let hashes = vec![BlockHash([1; 32]), BlockHash::ZERO];
    let name = Name::new("n").expect("a name");
    let records = vec![
        RecordItem::Object {
            id: FileId(2),
            object: object(),
        },
        RecordItem::Binding {
            parent: FileId::ROOT,
            name,
            object: FileId(2),
        },
        RecordItem::Blocks {
            file: FileId(2),
            first: 0,
            hashes,
        },
    ];
    let end = ToPrimary::RecordsEnd {
        epoch: EpochId(300),
        digest: [9; 32],
        root_hash: RootHash([5; 32]),
    };
    let refused = ToPrimary::Refused {
        reason: Refusal::NotEmpty,
        message: "not empty".into(),
    };
    vec![
        ("welcome", ToPrimary::Welcome(welcome)),
        ("refused", refused),
        ("staged", ToPrimary::Staged { entries: 7 }),
        ("received", ToPrimary::Received(EpochId(300))),
        ("durable", ToPrimary::Durable(EpochId(300))),
        (
            "applied",
            ToPrimary::Applied {
                epoch: EpochId(300),
                root_hash: RootHash([5; 32]),
            },
        ),
        ("suspect", ToPrimary::Suspect { file: FileId(2) }),
        ("records", ToPrimary::Records(records)),
        ("records-end", end),
        ("pong", ToPrimary::Pong(6)),
        (
            "stalled",
            ToPrimary::Stalled {
                message: "disk full".into(),
            },
        ),
    ]
}

// A new kind of message does not compile until it is named here, and then wants its line.
fn kinds() -> usize {
    let to_replica = |message: &ToReplica| match message {
        ToReplica::Hello(_)
        | ToReplica::Stage { .. }
        | ToReplica::Truncate { .. }
        | ToReplica::Commit(_)
        | ToReplica::Apply
        | ToReplica::FetchRecords
        | ToReplica::Ping(_)
        | ToReplica::Goodbye => 8,
    };
    let to_primary = |message: &ToPrimary| match message {
        ToPrimary::Welcome(_)
        | ToPrimary::Refused { .. }
        | ToPrimary::Staged { .. }
        | ToPrimary::Received(_)
        | ToPrimary::Durable(_)
        | ToPrimary::Applied { .. }
        | ToPrimary::Suspect { .. }
        | ToPrimary::Records(_)
        | ToPrimary::RecordsEnd { .. }
        | ToPrimary::Pong(_)
        | ToPrimary::Stalled { .. } => 11,
    };
    to_replica(&ToReplica::Apply) + to_primary(&ToPrimary::Pong(0))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digit).collect()
}

fn check<M: Message + PartialEq + Debug>(
    golden: &str,
    name: &str,
    message: &M,
    bytes: &[u8],
) -> String {
    let mut frame = Vec::new();
    encode(message, Some(bytes), &mut frame).expect("encodes");
    let line = format!("{name} {}\n", hex(&frame));
    if std::env::var_os("MIRRORFS_BLESS").is_some() {
        return line;
    }
    let prefix = format!("{name} ");
    let old = golden.lines().find_map(|line| line.strip_prefix(&prefix));
    let old = unhex(old.unwrap_or_else(|| panic!("{name} has no line in frames.hex")));
    let (consumed, decoded, got) = decode::<M>(&old).expect("good").expect("whole");
    assert_eq!(
        (consumed, &decoded, got.as_slice()),
        (old.len(), message, bytes),
        "{name}"
    );
    // What zstd makes of bytes may change with its version, and decompresses all the same.
    if !name.ends_with("-packed") {
        assert_eq!(frame, old, "{name} is written in another way");
    }
    line
}

#[test]
fn frames_of_version_1() {
    let golden = std::fs::read_to_string(FILE).unwrap_or_default();
    let mut text = String::new();
    for (name, message, bytes) in to_replica() {
        text.push_str(&check(&golden, name, &message, &bytes));
    }
    for (name, message) in to_primary() {
        text.push_str(&check(&golden, name, &message, b""));
    }
    let kinds_of_entries = entries().len() + objects().len() - 1;
    assert_eq!(text.lines().count(), kinds() + kinds_of_entries);
    if std::env::var_os("MIRRORFS_BLESS").is_some() {
        std::fs::write(FILE, text).expect("the golden file is written");
    }
}
