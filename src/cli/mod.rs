//! The command line: one file a subcommand, flags that feed parser and help, and the way in
//! which failures are shown. It does nothing itself; the runtime does.

mod drain;
mod mount;
mod mount_options;
mod options;
mod recover;
mod serve;
mod show;
mod status;
mod umount;
mod wait;

use crate::control::{Client, ClientError, Exit, Failure, Reply, Request, Status};
use crate::runtime::registry::Registry;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Mirror a directory to a backup host while you work in it.
#[derive(Parser, Debug)]
#[command(name = "mirrorfs", version, max_term_width = 100)]
struct Cli {
    /// Say more; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Mount(Box<mount::Args>),
    Status(status::Args),
    Wait(wait::Args),
    Drain(drain::Args),
    Umount(umount::Args),
    Recover(recover::Args),
    Serve(serve::Args),
}

/// What a subcommand ends with.
type Outcome = Result<(), Failure>;

/// Runs the program with these arguments, its name first.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let (arguments, cli) = match parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code()));
        }
    };
    let outcome = match cli.command {
        Command::Mount(args) => mount::run(*args, &arguments, cli.verbose),
        Command::Status(args) => status::run(&args),
        Command::Wait(args) => wait::run(&args),
        Command::Drain(args) => drain::run(&args, cli.verbose),
        Command::Umount(args) => umount::run(&args),
        Command::Recover(args) => recover::run(&args, cli.verbose),
        Command::Serve(args) => serve::run(&args, cli.verbose),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // The child of a mount has said it already.
            if !failure.causes.is_empty() {
                eprint!("{failure}");
            }
            ExitCode::from(failure.exit.code())
        }
    }
}

/// Parses; the options of `-o` take part as the long options that they name.
fn parse(arguments: Vec<OsString>) -> Result<(Vec<OsString>, Cli), clap::Error> {
    let arguments = mount_options::from_mount_helper(arguments);
    let cli = parse_once(&arguments)?;
    let Command::Mount(args) = &cli.command else {
        return Ok((arguments, cli));
    };
    if args.options.mount_options.is_empty() {
        return Ok((arguments, cli));
    }
    let known = mount::Args::augment(clap::Command::new("mount"));
    let longs = mount_options::long_options(&args.options.mount_options, &known)
        .map_err(|reason| command().error(clap::error::ErrorKind::InvalidValue, reason))?;
    let cli = parse_once(&mount_options::inserted(&arguments, longs))?;
    Ok((arguments, cli))
}

fn parse_once(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches)
}

fn command() -> clap::Command {
    let mut codes = String::from("Exit codes:\n");
    for (exit, meaning) in Exit::ALL {
        codes.push_str(&format!("  {:>2}  {meaning}\n", exit.code()));
    }
    Cli::command().after_help(codes)
}

/// Asks the daemon of the mirror that `path` belongs to.
///
/// # Errors
/// When there is no such mirror, no daemon, or the daemon says that it failed.
fn ask(path: &Path, state_root: Option<&Path>, request: &Request) -> Result<Reply, Failure> {
    let registry = Registry::read(state_root);
    let mirror = registry.find(path)?;
    // Whoever asks for an unmount must not hold the mount itself.
    let _ = std::env::set_current_dir("/");
    let mut progress = show::Progress::new();
    let reply = call(&mirror.state_dir, request, &mut |status| {
        progress.show(status)
    });
    progress.end();
    reply
}

fn call(
    state_dir: &Path,
    request: &Request,
    progress: &mut dyn FnMut(&Status),
) -> Result<Reply, Failure> {
    let client = Client::connect(state_dir).map_err(client_failure)?;
    match client.call(request, progress).map_err(client_failure)? {
        Reply::Failed { failure } => Err(failure),
        reply => Ok(reply),
    }
}

fn client_failure(error: ClientError) -> Failure {
    let exit = match &error {
        ClientError::NoDaemon(_) => Exit::NotMounted,
        ClientError::Answer { .. } => Exit::Version,
        ClientError::Forbidden(_) | ClientError::Io { .. } | ClientError::Ended(_) => Exit::Failure,
    };
    let next = match &error {
        ClientError::NoDaemon(_) => {
            "`mirrorfs mount` mounts it again; `mirrorfs drain` ships what \
            is left without a mount"
                .to_owned()
        }
        ClientError::Forbidden(_) => "run the command as the user who mounted".to_owned(),
        ClientError::Answer { .. } => {
            "use the mirrorfs program of the same version as the mount".to_owned()
        }
        ClientError::Io { path, .. } | ClientError::Ended(path) => {
            format!("see {}", path.join(crate::runtime::LOG_NAME).display())
        }
    };
    Failure::from_error(exit, &error).next(next)
}

/// What a daemon answered though it was not asked for it.
fn unexpected() -> Failure {
    Failure::new(
        Exit::Version,
        "the daemon answered something else than it was asked",
    )
    .next("use the mirrorfs program of the same version as the mount")
}

/// A timeout as the control socket takes it.
fn millis(timeout: Option<std::time::Duration>) -> Option<u64> {
    timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
}

fn print_json(value: &impl serde::Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::from_error(Exit::Failure, &error))?;
    print_line(&text)
}

/// Prints a line; a reader that went away is no panic.
fn print_line(text: &str) -> Outcome {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::from_error(Exit::Failure, &error).context("cannot print"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
