//! A daemon that is none, and commands that ask it.

use super::*;
use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

struct Fake {
    mounted: Cell<bool>,
}

impl Service for Fake {
    fn status(&self) -> Status {
        Status {
            mounted: self.mounted.get(),
            pending_operations: 3,
            ..Status::default()
        }
    }
    async fn wait(&self, timeout: Option<Duration>) -> Result<u64, Failure> {
        match timeout {
            None => Ok(7),
            Some(timeout) => {
                tokio::time::sleep(timeout).await;
                Err(Failure::new(Exit::Owed, "3 changes are owed").next("wait longer"))
            }
        }
    }
    async fn drain(&self, _: Option<Duration>) -> Result<Receipt, Failure> {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        Ok(Receipt {
            epoch: 9,
            ..Receipt::default()
        })
    }
    async fn umount(&self, _: Option<Duration>, lazy: bool) -> Result<Receipt, Failure> {
        self.mounted.set(false);
        Ok(Receipt {
            epoch: u64::from(lazy),
            ..Receipt::default()
        })
    }
    async fn give_way(&self) -> Result<(), Failure> {
        match self.mounted.get() {
            true => Err(Failure::new(Exit::Busy, "mounted")),
            false => Ok(()),
        }
    }
}

/// Runs `asks` on a thread of its own against a daemon that serves `dir`.
fn against_a_daemon(dir: &Path, asks: impl FnOnce(&Path) + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = {
        let _inside = runtime.enter();
        Server::bind(OwnedFd::from(File::open(dir).unwrap())).unwrap()
    };
    let mode = std::fs::metadata(dir.join(SOCKET_NAME))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let served = tokio::task::spawn_local(server.run(Rc::new(Fake {
            mounted: Cell::new(true),
        })));
        let path = dir.to_owned();
        tokio::task::spawn_blocking(move || asks(&path))
            .await
            .unwrap();
        served.abort();
        let _ = served.await;
    });
    assert!(
        !dir.join(SOCKET_NAME).exists(),
        "the socket goes with its daemon"
    );
}

fn ask(dir: &Path, request: &Request, progress: &mut dyn FnMut(&Status)) -> Reply {
    Client::connect(dir)
        .unwrap()
        .call(request, progress)
        .unwrap()
}

#[test]
fn commands_are_answered() {
    let place = tempfile::tempdir().unwrap();
    // Longer than the address of a socket may be.
    let dir = place.path().join("d".repeat(120));
    std::fs::create_dir(&dir).unwrap();
    // What a daemon that was killed leaves behind.
    std::fs::write(dir.join(SOCKET_NAME), "").unwrap();
    against_a_daemon(&dir, |dir| {
        let none = &mut |_: &Status| {};
        let Reply::Status { status } = ask(dir, &Request::Status, none) else {
            panic!()
        };
        assert_eq!((status.mounted, status.pending_operations), (true, 3));
        let wait = |timeout_ms| Request::Wait { timeout_ms };
        assert_eq!(ask(dir, &wait(None), none), Reply::Durable { epoch: 7 });
        let Reply::Failed { failure } = ask(dir, &wait(Some(1)), none) else {
            panic!()
        };
        assert_eq!(
            (failure.exit, failure.next.as_deref()),
            (Exit::Owed, Some("wait longer"))
        );
        let Reply::Failed { failure } = ask(dir, &Request::Yield, none) else {
            panic!()
        };
        assert_eq!(failure.exit, Exit::Busy);
        let mut heard = 0;
        let drain = Request::Drain { timeout_ms: None };
        let reply = ask(dir, &drain, &mut |status| {
            heard += status.pending_operations
        });
        assert!(matches!(reply, Reply::Receipt { receipt } if receipt.epoch == 9));
        assert!(heard >= 3, "a long request is told how it stands");
        let umount = Request::Umount {
            timeout_ms: None,
            lazy: true,
        };
        assert!(matches!(ask(dir, &umount, none), Reply::Receipt { .. }));
        assert_eq!(ask(dir, &Request::Yield, none), Reply::Yielding);
    });
}

#[test]
fn a_covered_state_directory_has_its_socket_elsewhere() {
    let place = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let inside = runtime.enter();
    let server = Server::bind_outside(place.path()).unwrap();
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    Client::connect(place.path()).unwrap();
    drop((server, inside));
    assert!(matches!(
        Client::connect(place.path()),
        Err(ClientError::NoDaemon(_))
    ));
}

#[test]
fn without_a_daemon_nobody_waits() {
    let dir = tempfile::tempdir().unwrap();
    let none = || Client::connect(dir.path()).expect_err("nobody listens");
    assert!(matches!(none(), ClientError::NoDaemon(_)));
    // Left behind by one that was killed.
    drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap());
    assert!(matches!(none(), ClientError::NoDaemon(_)));
}

#[test]
fn nonsense_is_answered_and_bounded() {
    use std::io::{Read, Write};
    let place = tempfile::tempdir().unwrap();
    against_a_daemon(place.path(), |dir| {
        for line in [&b"{}\n"[..], b"\xff\xff\n", &vec![b'x'; 100_000]] {
            let path = dir.join(SOCKET_NAME);
            let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
            let _ = stream.write_all(line);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            assert!(
                answer.is_empty() || answer.contains("does not understand"),
                "{answer}"
            );
        }
    });
}
