//! The built-in ssh client, on libssh2: connect, check the host's key, get in, start the remote
//! side, then hand the session to the one thread that owns it ([`pump`]).

mod auth;
mod config;
mod known_hosts;
mod prompt;
mod pump;

pub use prompt::{Never, Prompt, Terminal};

use self::auth::Credentials;
use self::config::HostConfig;
use self::known_hosts::{KnownHosts, Names};
use super::Options;
use super::error::{Error, Result};
use super::link::{Closer, Link};
use super::target::{Remote, serve_command};
use crate::limits::{
    CONNECT_DEADLINE, CREDENTIAL_BYTES_MAX, LINK_DEADLINE, SSH_STEP_DEADLINE, SSH_WINDOW_BYTES,
};
use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use ssh2::{MethodType, Session};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Instant;

/// Bytes in one packet of the channel.
const PACKET_BYTES: u32 = 32 * 1024;

/// All that is needed to connect, again and again, without opening a path.
#[derive(Debug)]
pub(super) struct Client {
    /// As the user named it, for messages.
    label: String,
    host: String,
    port: u16,
    user: String,
    names: Names,
    known_hosts: KnownHosts,
    credentials: Credentials,
    command: String,
    program: String,
}

impl Client {
    pub(super) fn load(remote: &Remote, options: &Options) -> Result<Client> {
        let home = options.home.as_deref();
        let config = match home {
            Some(home) => HostConfig::load(home, &remote.host)?,
            None => HostConfig::default(),
        };
        let host = config
            .host_name
            .clone()
            .unwrap_or_else(|| remote.host.clone());
        let port = remote.port.or(options.port).or(config.port).unwrap_or(22);
        let user = remote
            .user
            .clone()
            .or(config.user)
            .or_else(|| options.login.clone());
        let names = match &config.host_key_alias {
            Some(alias) => Names::new(alias, 22),
            None => Names::new(&host, port),
        };
        let known_hosts = match (&options.known_hosts, config.known_hosts) {
            (Some(named), _) => vec![named.clone()],
            (None, configured) if !configured.is_empty() => configured,
            (None, _) => home.map(usual_known_hosts).unwrap_or_default(),
        };
        let agent = match config.identity_agent.as_deref() {
            Some("none") => None,
            Some(path) if path.starts_with('/') => Some(PathBuf::from(path)),
            Some(path) => match (path.strip_prefix("~/"), home) {
                (Some(tail), Some(home)) => Some(home.join(tail)),
                _ => options.agent.clone(),
            },
            None => options.agent.clone(),
        };
        Ok(Client {
            label: remote.host.clone(),
            host,
            port,
            user: user.unwrap_or_else(|| "root".to_owned()),
            names,
            known_hosts: KnownHosts::load(&known_hosts, options.accept_new_host_key)?,
            credentials: Credentials::load(
                &options.identities,
                &config.identity_files,
                home,
                agent.as_deref(),
                config.identities_only.unwrap_or(false),
            )?,
            command: serve_command(remote, options),
            program: options
                .remote_path
                .clone()
                .unwrap_or_else(|| "mirrorfs".to_owned()),
        })
    }

    pub(super) fn connect(&self, prompt: &dyn Prompt, closer: &Closer) -> Result<Link> {
        match self.establish(prompt, closer) {
            // Whatever step noticed it first, that was the reason.
            Err(_) if closer.is_closed() => Err(Error::Closed),
            result => result,
        }
    }

    fn establish(&self, prompt: &dyn Prompt, closer: &Closer) -> Result<Link> {
        let socket = self.dial(closer)?;
        let system = |action| move |source: io::Error| Error::System { action, source };
        closer.ends(OwnedFd::from(
            socket.try_clone().map_err(system("share a socket"))?,
        ));
        let polled = socket.try_clone().map_err(system("share a socket"))?;
        let mut session = Session::new().map_err(|error| self.failed("starting", &error))?;
        session.set_timeout(u32::try_from(SSH_STEP_DEADLINE.as_millis()).unwrap_or(u32::MAX));
        session.set_tcp_stream(socket);
        let preferred = self.known_hosts.preferred(&session, &self.names);
        session
            .method_pref(MethodType::HostKey, &preferred)
            .and_then(|()| session.handshake())
            .map_err(|error| self.failed("agreeing on keys", &error))?;
        self.known_hosts.check(&session, &self.names)?;
        self.credentials
            .authenticate(&session, &self.label, &self.user, prompt)?;
        let channel = session
            .channel_open("session", SSH_WINDOW_BYTES, PACKET_BYTES, None)
            .and_then(|mut channel| channel.exec(&self.command).map(|()| channel))
            .map_err(|error| self.failed("starting the remote side", &error))?;
        session.set_blocking(false);
        let (link, far) = Link::new(closer)?;
        let pump = pump::Pump::new(session, channel, polled, far, closer.clone())?;
        let (outcome, closer) = (link.outcome.clone(), closer.clone());
        let (host, command) = (self.label.clone(), self.program.clone());
        std::thread::Builder::new()
            .name("ssh".to_owned())
            .spawn(move || {
                outcome.tell(pump.run(&host, &command));
                closer.close();
            })
            .map_err(system("start a thread"))?;
        Ok(link)
    }

    fn failed(&self, during: &'static str, error: &ssh2::Error) -> Error {
        Error::Ssh {
            host: self.label.clone(),
            during,
            message: error.message().to_owned(),
        }
    }

    fn unreachable(&self, source: io::Error) -> Error {
        Error::Unreachable {
            host: self.host.clone(),
            port: self.port,
            source,
        }
    }

    /// A connected TCP socket that notices when the other end is gone.
    fn dial(&self, closer: &Closer) -> Result<TcpStream> {
        let deadline = Instant::now() + CONNECT_DEADLINE;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let addresses = self.resolve(closer, deadline)?;
        for (tried, address) in addresses.iter().enumerate() {
            // One that swallows everything must not take the time of the others.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            match self.dial_one(*address, closer, Instant::now() + share)? {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(self.unreachable(last))
    }

    fn dial_one(
        &self,
        address: SocketAddr,
        closer: &Closer,
        deadline: Instant,
    ) -> Result<io::Result<TcpStream>> {
        let family = if address.is_ipv6() {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connecting = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .and_then(|socket| match rustix::net::connect(&socket, &address) {
                Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
                Err(errno) => Err(errno),
            });
        let socket = match connecting {
            Ok(socket) => socket,
            Err(errno) => return Ok(Err(errno.into())),
        };
        if !closer.poll(socket.as_fd(), PollFlags::OUT, deadline)? {
            return Ok(Err(io::ErrorKind::TimedOut.into()));
        }
        let deadline = u32::try_from(LINK_DEADLINE.as_millis()).unwrap_or(u32::MAX);
        let ready = match sockopt::socket_error(&socket) {
            Ok(result) => result,
            Err(errno) => Err(errno),
        };
        let set_up = ready
            .and_then(|()| sockopt::set_tcp_nodelay(&socket, true))
            .and_then(|()| sockopt::set_socket_keepalive(&socket, true))
            .and_then(|()| sockopt::set_tcp_user_timeout(&socket, deadline))
            .map(|()| TcpStream::from(socket));
        Ok(set_up.map_err(io::Error::from))
    }

    /// The addresses of the host. A resolver cannot be interrupted, so it gets a thread of its
    /// own, which is left behind when it takes too long.
    fn resolve(&self, closer: &Closer, deadline: Instant) -> Result<Vec<SocketAddr>> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let system = |action| move |source| Error::System { action, source };
        let (done, finished) = UnixStream::pair().map_err(system("make a socket pair"))?;
        let (sender, receiver) = mpsc::channel();
        let query = (self.host.clone(), self.port);
        std::thread::Builder::new()
            .name("resolve".to_owned())
            .spawn(move || {
                let _ = sender.send(query.to_socket_addrs().map(Iterator::collect::<Vec<_>>));
                drop(done);
            })
            .map_err(system("start a thread"))?;
        if !closer.poll(finished.as_fd(), PollFlags::IN, deadline)? {
            return Err(self.unreachable(io::ErrorKind::TimedOut.into()));
        }
        match receiver.try_recv() {
            Ok(resolved) => resolved.map_err(|error| self.unreachable(error)),
            Err(_) => Err(self.unreachable(io::ErrorKind::Other.into())),
        }
    }
}

fn usual_known_hosts(home: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = ["known_hosts", "known_hosts2"]
        .iter()
        .map(|name| home.join(".ssh").join(name))
        .collect();
    paths.push("/etc/ssh/ssh_known_hosts".into());
    paths
}

/// A small file; `None` if there is none.
fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |source| Error::File {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(CREDENTIAL_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > CREDENTIAL_BYTES_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(Some(bytes))
}
