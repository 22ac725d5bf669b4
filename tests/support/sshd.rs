//! A real sshd on loopback with throwaway keys, for one test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running sshd; ended, by its process id, when dropped.
pub struct Sshd {
    /// Holds keys and configuration; `home/.ssh` is a client's home.
    pub directory: tempfile::TempDir,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    daemon: Child,
}

impl Sshd {
    /// Starts one whose host key the client in `home` knows and whose user has `id_ed25519`.
    pub fn start() -> Sshd {
        let directory = tempfile::tempdir().expect("a directory");
        let ssh = directory.path().join("home/.ssh");
        std::fs::create_dir_all(&ssh).expect("a home");
        keygen(&directory.path().join("host_key"), "");
        keygen(&ssh.join("id_ed25519"), "");
        std::fs::copy(
            ssh.join("id_ed25519.pub"),
            directory.path().join("authorized_keys"),
        )
        .expect("authorized_keys");
        let (daemon, port) = launch(directory.path());
        let sshd = Sshd {
            directory,
            port,
            daemon,
        };
        sshd.know_host();
        sshd
    }

    /// The home of the client.
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// Lets `key.pub` in, too.
    pub fn authorize(&self, public: &Path) {
        let file = self.directory.path().join("authorized_keys");
        let keys = std::fs::read_to_string(&file).expect("keys");
        let more = std::fs::read_to_string(public).expect("a public key");
        std::fs::write(&file, keys + &more).expect("authorized_keys");
    }

    /// Makes the client know the host's key, and nothing else.
    pub fn know_host(&self) {
        let public = std::fs::read_to_string(self.directory.path().join("host_key.pub"));
        let line = format!("[127.0.0.1]:{} {}", self.port, public.expect("a host key"));
        std::fs::write(self.home().join(".ssh/known_hosts"), line).expect("known_hosts");
    }

    /// A script for `--remote-path`.
    pub fn script(&self, name: &str, body: &str) -> String {
        script(self.directory.path(), name, body)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Writes an executable script of sh and returns its path.
pub fn script(directory: &Path, name: &str, body: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a script");
    path.to_str().expect("UTF-8").to_owned()
}

/// Makes a key pair.
pub fn keygen(path: &Path, passphrase: &str) {
    let made = Command::new("ssh-keygen")
        .args([
            "-q",
            "-t",
            "ed25519",
            "-N",
            passphrase,
            "-C",
            "throwaway",
            "-f",
        ])
        .arg(path)
        .status();
    assert!(made.expect("ssh-keygen, of openssh-client").success());
}

/// Starts sshd on a port that is free; another process may take it in between, so it tries again.
fn launch(directory: &Path) -> (Child, u16) {
    // Where it separates its privileges; only root needs it, and only root can make it.
    let _ = std::fs::create_dir_all("/run/sshd");
    for _ in 0..20 {
        let free =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = free.expect("a free port").port();
        let at = directory.display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host_key\nPidFile none\n\
             AuthorizedKeysFile {at}/authorized_keys\nUsePAM no\nStrictModes no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
             RekeyLimit 16M\nMaxStartups 100\nLogLevel INFO\n"
        );
        let file = directory.join("sshd_config");
        std::fs::write(&file, config).expect("sshd_config");
        let mut daemon = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sshd, of openssh-server");
        let mut lines = BufReader::new(daemon.stderr.take().expect("a pipe")).lines();
        let listens = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.contains("listening"));
        if listens {
            // It must never wait for somebody to read what it says.
            std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
            return (daemon, port);
        }
        let _ = daemon.wait();
    }
    panic!("sshd does not start");
}
