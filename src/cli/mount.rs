//! `mirrorfs mount`.

use super::Outcome;
use super::options::OptionArgs;
use crate::control::{Exit, Failure};
use crate::runtime::{self, MountRequest, ready};
use std::ffi::OsString;
use std::path::PathBuf;

/// Mount SOURCE, and mirror what is done in it to TARGET
#[derive(clap::Args, Debug, Clone)]
#[command(args_override_self = true)]
pub struct Args {
    /// The directory to mirror
    pub source: PathBuf,
    /// The replica: /a/directory, user@host:/path or ssh://user@host:port/path
    pub target: String,
    /// Where to mount it [default: over SOURCE itself]
    pub mountpoint: Option<PathBuf>,
    #[command(flatten)]
    pub options: OptionArgs,
    /// Stay in the foreground, and log to standard error
    #[arg(long, short)]
    pub foreground: bool,
    /// Where the child of a mount says that it is ready
    #[arg(long, hide = true, value_name = "DESCRIPTOR")]
    pub ready_descriptor: Option<i32>,
}

impl Args {
    /// The arguments put into a command, to look them up.
    pub fn augment(command: clap::Command) -> clap::Command {
        <Args as clap::Args>::augment_args(command)
    }
}

/// Mounts. The process that the user started asks a child to do everything, and ends when that
/// one says that the mount is usable; so nothing is forked once there are threads.
pub fn run(args: Args, arguments: &[OsString], verbose: u8) -> Outcome {
    let here = |error: std::io::Error| {
        Failure::from_error(Exit::Path, &error).context("the working directory cannot be read")
    };
    if !args.foreground && args.ready_descriptor.is_none() {
        return ready::in_background(arguments);
    }
    let options = args.options.resolve().map_err(here)?;
    let state_root = args
        .options
        .state_dir
        .map(std::path::absolute)
        .transpose()
        .map_err(here)?;
    let request = MountRequest {
        source: args.source,
        target: args.target,
        mountpoint: args.mountpoint,
        state_root,
        options,
        verbose,
    };
    let ready = match args.ready_descriptor {
        Some(descriptor) => ready::Ready::parent(descriptor)?,
        None => ready::Ready::foreground(),
    };
    runtime::mount(request, ready)
}
