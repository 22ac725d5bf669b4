//! One suite over every transport: the pair within a process, a remote shell, and the built-in
//! ssh client against a real sshd on loopback.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

#[path = "../support/mod.rs"]
mod support;

use mirrorfs::transport::{
    Closer, Connector, Error, Link, Never, Options, Prompt, Remote, Target, Terminal,
};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use support::sshd::{Sshd, keygen, script};

/// Far longer than anything here takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn remote(text: &str) -> Remote {
    match Target::parse(text).unwrap() {
        Target::Remote(remote) => remote,
        Target::Local(path) => panic!("{path:?} is local"),
    }
}

fn client(sshd: &Sshd, remote_path: &str) -> Options {
    Options {
        home: Some(sshd.home()),
        port: Some(sshd.port),
        login: Some(whoami()),
        remote_path: Some(remote_path.to_owned()),
        ..Options::default()
    }
}

fn whoami() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn connect(options: &Options) -> Result<Link, Error> {
    let connector = Connector::load(&remote("127.0.0.1:/any where"), options)?;
    connector.connect(&Never, &Closer::new()?)
}

/// Why a connection fails: at once, or after the end of its stream.
fn failure(options: &Options) -> String {
    match connect(options) {
        Err(error) => format!("{error:?}"),
        Ok(mut link) => {
            assert_eq!(
                link.reader.read(&mut [0; 16]).unwrap(),
                0,
                "the stream ends"
            );
            format!("{:?}", link.diagnosis(PATIENCE).expect("a reason"))
        }
    }
}

/// Stand-ins for a remote shell: drop the host, let sh run the rest, as sshd does.
fn stand_in(directory: &Path) -> String {
    script(directory, "rsh", "shift\nexec sh -c \"$*\"")
}

fn megabyte(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(1 << 20);
    while bytes.len() < 1 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// 64 MiB there and back at the same time, then an orderly end.
fn echoes(link: Link) {
    let Link {
        mut reader,
        mut writer,
        outcome: _outcome,
        closer: _closer,
    } = link;
    let writing = std::thread::spawn(move || {
        for number in 0..64 {
            writer.write_all(&megabyte(number)).unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
        writer
    });
    let mut buffer = vec![0; 1 << 20];
    for number in 0..64 {
        reader.read_exact(&mut buffer).unwrap();
        assert!(buffer == megabyte(number), "megabyte {number} is another");
    }
    assert_eq!(reader.read(&mut buffer).unwrap(), 0);
    writing.join().unwrap();
}

/// A writer and a reader that block end promptly when a third thread closes.
fn closes(link: Link) {
    let Link {
        mut reader,
        mut writer,
        closer,
        outcome: _outcome,
    } = link;
    let (sender, ended) = mpsc::channel();
    let (full, filled) = mpsc::channel();
    let other = sender.clone();
    std::thread::spawn(move || {
        let _ = sender.send(reader.read(&mut [0; 16]).map(drop));
    });
    std::thread::spawn(move || {
        writer.set_nonblocking(true).unwrap();
        let bytes = megabyte(1);
        // Until nothing moves: whatever buffers there are between us and them are full.
        let mut quiet = 0;
        while quiet < 5 {
            quiet = match writer.write(&bytes) {
                Ok(_) => 0,
                Err(_) => quiet + 1,
            };
            std::thread::sleep(Duration::from_millis(if quiet == 0 { 0 } else { 50 }));
        }
        writer.set_nonblocking(false).unwrap();
        full.send(()).unwrap();
        let _ = other.send(loop {
            if let Err(error) = writer.write(&bytes) {
                break Err(error);
            }
        });
    });
    filled.recv_timeout(PATIENCE).unwrap();
    closer.close();
    for _ in 0..2 {
        // End of file for the reader, an error for the writer; all that counts is that they end.
        let _ = ended.recv_timeout(PATIENCE).expect("both end");
    }
}

#[test]
fn a_pair_echoes_and_closes() {
    let (link, far) = Link::pair().unwrap();
    let mut input = far.try_clone().unwrap();
    let echo = std::thread::spawn(move || {
        let mut output = far;
        std::io::copy(&mut input, &mut output).unwrap();
    });
    echoes(link);
    echo.join().unwrap();
    let (link, _far) = Link::pair().unwrap();
    closes(link);
}

#[test]
fn a_remote_shell_echoes_and_closes() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options {
        rsh: Some(stand_in(directory.path())),
        remote_path: Some(script(directory.path(), "echo", "exec cat")),
        ..Options::default()
    };
    echoes(connect(&options).unwrap());
    options.remote_path = Some(script(directory.path(), "deaf", "exec sleep 1000"));
    let link = connect(&options).unwrap();
    let outcome = link.outcome.clone();
    closes(link);
    assert!(matches!(*outcome.wait(PATIENCE).unwrap(), Error::Closed));
}

#[test]
fn ssh_echoes_across_new_session_keys_and_closes() {
    let sshd = Sshd::start();
    echoes(connect(&client(&sshd, &sshd.script("echo", "exec cat"))).unwrap());
    let link = connect(&client(&sshd, &sshd.script("deaf", "exec sleep 1000"))).unwrap();
    let outcome = link.outcome.clone();
    closes(link);
    assert!(matches!(*outcome.wait(PATIENCE).unwrap(), Error::Closed));
}

#[test]
fn the_ssh_program_works_as_remote_shell() {
    let sshd = Sshd::start();
    let mut options = client(&sshd, &sshd.script("echo", "exec cat"));
    let ssh = sshd.home().join(".ssh");
    let known = format!(
        "-o UserKnownHostsFile={}",
        ssh.join("known_hosts").display()
    );
    let key = ssh.join("id_ed25519");
    options.rsh = Some(format!(
        "ssh -F none -o BatchMode=yes {known} -i '{}'",
        key.display()
    ));
    echoes(connect(&options).unwrap());
    options.remote_path = Some("/no/such program".to_owned());
    assert!(
        failure(&options).contains("RemoteMissing"),
        "{}",
        failure(&options)
    );
    options.rsh = Some(format!("ssh -F none -o BatchMode=yes {known} -i /dev/null"));
    assert!(
        failure(&options).contains("AuthenticationRefused"),
        "{}",
        failure(&options)
    );
    std::fs::write(ssh.join("known_hosts"), "").unwrap();
    assert!(
        failure(&options).contains("HostKeyRefused"),
        "{}",
        failure(&options)
    );
    options.rsh = Some("/no/such/ssh".to_owned());
    assert!(failure(&options).contains("Start"), "{}", failure(&options));
}

#[test]
fn the_arguments_reach_the_remote_side_whole() {
    let sshd = Sshd::start();
    let mut options = client(&sshd, &sshd.script("say", "printf '%s|' \"$@\""));
    options.serve_arguments = vec!["--note".to_owned(), "it's; $HOME".to_owned()];
    let mut said = String::new();
    connect(&options)
        .unwrap()
        .reader
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "serve|--stdio|--note|it's; $HOME|--|/any where|");
    said.clear();
    options.rsh = Some(stand_in(sshd.directory.path()));
    options.port = None;
    connect(&options)
        .unwrap()
        .reader
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "serve|--stdio|--note|it's; $HOME|--|/any where|");
}

#[test]
fn an_unknown_host_is_refused_until_it_is_accepted() {
    let sshd = Sshd::start();
    let mut options = client(&sshd, &sshd.script("echo", "exec cat"));
    let known = sshd.home().join(".ssh/known_hosts");
    std::fs::write(&known, "# a comment\nother.example ssh-ed25519 AAAA").unwrap();
    let error = connect(&options).unwrap_err();
    let Error::HostUnknown { fingerprint, .. } = &error else {
        panic!("{error:?}")
    };
    let key = sshd.directory.path().join("host_key.pub");
    let shown = Command::new("ssh-keygen")
        .arg("-lf")
        .arg(key)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains(fingerprint.as_str()));
    assert!(!error.is_transient() && error.next_step().contains("--accept-new-host-key"));

    options.accept_new_host_key = true;
    let connector = Connector::load(&remote("127.0.0.1:/x"), &options).unwrap();
    for _ in 0..2 {
        connector.connect(&Never, &Closer::new().unwrap()).unwrap();
    }
    let text = std::fs::read_to_string(&known).unwrap();
    assert_eq!(
        text.lines().count(),
        3,
        "appended once, in a line of its own: {text}"
    );
    options.accept_new_host_key = false;
    connect(&options).unwrap();
    // Hashed, as Debian writes them.
    let hashed = Command::new("ssh-keygen")
        .args(["-H", "-f"])
        .arg(&known)
        .output();
    assert!(hashed.unwrap().status.success());
    assert!(
        !std::fs::read_to_string(&known)
            .unwrap()
            .contains("127.0.0.1")
    );
    connect(&options).unwrap();
}

#[test]
fn a_changed_host_key_is_always_refused() {
    let sshd = Sshd::start();
    let mut options = client(&sshd, "true");
    options.accept_new_host_key = true;
    let other = sshd.directory.path().join("other_key");
    keygen(&other, "");
    let public = std::fs::read_to_string(other.with_extension("pub")).unwrap();
    let known = sshd.home().join(".ssh/known_hosts");
    let line = format!("# note\n[127.0.0.1]:{} {public}", sshd.port);
    std::fs::write(&known, &line).unwrap();
    let error = connect(&options).unwrap_err();
    assert!(
        matches!(error, Error::HostKeyChanged { line: 2, .. }),
        "{error:?}"
    );
    assert!(!error.is_transient());
    let hashed = Command::new("ssh-keygen")
        .args(["-H", "-f"])
        .arg(&known)
        .output();
    assert!(hashed.unwrap().status.success());
    let error = connect(&options).unwrap_err();
    assert!(matches!(error, Error::HostKeyChanged { .. }), "{error:?}");
    assert!(
        !std::fs::read_to_string(&known)
            .unwrap()
            .contains("127.0.0.1"),
        "nothing is added"
    );

    sshd.know_host();
    let line = std::fs::read_to_string(&known).unwrap();
    std::fs::write(
        &known,
        format!("{line}@revoked * {}", line.split_once(' ').unwrap().1),
    )
    .unwrap();
    let error = connect(&options).unwrap_err();
    assert!(
        matches!(error, Error::HostKeyRevoked { line: 2, .. }),
        "{error:?}"
    );
}

#[test]
fn what_goes_wrong_is_named() {
    let sshd = Sshd::start();
    let options = client(&sshd, "/no/such program");
    let missing = failure(&options);
    assert!(
        missing.contains("RemoteMissing") && missing.contains("such program"),
        "{missing}"
    );
    let failing = sshd.script("fail", "echo 'the reason' >&2; exit 3");
    let failed = failure(&client(&sshd, &failing));
    assert!(
        failed.contains("exit status 3") && failed.contains("the reason"),
        "{failed}"
    );
    let killed = failure(&client(&sshd, &sshd.script("killed", "kill -9 $$")));
    assert!(killed.contains("signal KILL"), "{killed}");

    let stranger = sshd.directory.path().join("stranger");
    keygen(&stranger, "");
    let mut refused = options.clone();
    refused.home = None;
    refused.known_hosts = Some(sshd.home().join(".ssh/known_hosts"));
    refused.identities = vec![stranger];
    let error = connect(&refused).unwrap_err();
    let Error::AuthenticationRefused { tried, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(
        tried.contains("stranger") && tried.contains("publickey"),
        "{tried}"
    );
    refused.identities = vec![PathBuf::from("/no/such/key")];
    assert!(matches!(connect(&refused), Err(Error::File { .. })));

    let mut nobody = options.clone();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    nobody.port = Some(free.port());
    let error = connect(&nobody).unwrap_err();
    assert!(
        matches!(error, Error::Unreachable { .. }) && error.is_transient(),
        "{error:?}"
    );
}

#[test]
fn an_attempt_can_be_closed_while_the_host_is_silent() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let options = Options {
        port: Some(port),
        ..Options::default()
    };
    let connector = Connector::load(&remote("u@127.0.0.1:/x"), &options).unwrap();
    let closer = Closer::new().unwrap();
    let other = closer.clone();
    let attempt = std::thread::spawn(move || connector.connect(&Never, &other).map(drop));
    let (_connection, _) = silent.accept().unwrap();
    closer.close();
    assert!(matches!(attempt.join().unwrap(), Err(Error::Closed)));
}

/// Answers once.
struct Answer(parking_lot::Mutex<Option<&'static str>>);

impl Prompt for Answer {
    fn secret(&self, question: &str) -> Option<String> {
        assert!(question.contains("Passphrase for"), "{question}");
        self.0.lock().take().map(str::to_owned)
    }
}

#[test]
fn an_encrypted_key_is_asked_for_once_and_its_path_is_not_needed_again() {
    let sshd = Sshd::start();
    let ssh = sshd.home().join(".ssh");
    std::fs::remove_file(ssh.join("id_ed25519")).unwrap();
    std::fs::remove_file(ssh.join("id_ed25519.pub")).unwrap();
    keygen(&ssh.join("id_ed25519"), "open sesame");
    sshd.authorize(&ssh.join("id_ed25519.pub"));
    let options = client(&sshd, &sshd.script("echo", "exec cat"));
    let connector = Connector::load(&remote("127.0.0.1:/x"), &options).unwrap();
    let connect = |prompt: &dyn Prompt| connector.connect(prompt, &Closer::new().unwrap());
    std::fs::rename(sshd.home(), sshd.directory.path().join("covered")).unwrap();
    let refused = connect(&Never).unwrap_err();
    assert!(refused.to_string().contains("nobody to ask"), "{refused}");
    let refused = connect(&Answer(Some("wrong").into())).unwrap_err();
    assert!(
        matches!(refused, Error::AuthenticationRefused { .. }),
        "{refused:?}"
    );
    connect(&Answer(Some("open sesame").into())).unwrap();
    connect(&Never).unwrap();
    let terminal = Terminal {
        askpass: Some(sshd.script("ask", "echo 'open sesame'").into()),
        askpass_first: true,
    };
    assert_eq!(
        terminal.secret("Passphrase for it: ").as_deref(),
        Some("open sesame")
    );
}

/// An agent with the client's key, ended when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_agent_is_reached_even_when_its_path_is_covered() {
    let sshd = Sshd::start();
    let socket = sshd.home().join("agent");
    let mut agent = Command::new("ssh-agent");
    agent
        .arg("-D")
        .arg("-a")
        .arg(&socket)
        .stdout(Stdio::piped());
    let mut agent = Agent(agent.spawn().unwrap());
    // It speaks once it listens.
    let said = agent.0.stdout.as_mut().unwrap().read(&mut [0; 16]).unwrap();
    assert!(said > 0 && socket.exists());
    let key = sshd.home().join(".ssh/id_ed25519");
    let added = Command::new("ssh-add")
        .arg("-q")
        .arg(&key)
        .env("SSH_AUTH_SOCK", &socket)
        .status();
    assert!(added.unwrap().success());
    std::fs::remove_file(&key).unwrap();
    let mut options = client(&sshd, &sshd.script("echo", "exec cat"));
    options.agent = Some(socket);
    let connector = Connector::load(&remote("127.0.0.1:/x"), &options).unwrap();
    std::fs::rename(sshd.home(), sshd.directory.path().join("covered")).unwrap();
    connector.connect(&Never, &Closer::new().unwrap()).unwrap();
}
