//! Status and receipts for people.

use crate::config::Mirror;
use crate::control::{Phase, Receipt, Status};
use std::io::{IsTerminal, Write};

/// Bytes with a unit, three digits or fewer.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (count, 0);
    let mut tenths = 0;
    while value >= 1024 && unit + 1 < units.len() {
        tenths = value % 1024 * 10 / 1024;
        value /= 1024;
        unit += 1;
    }
    match unit > 0 && value < 100 {
        true => format!("{value}.{tenths} {}", units[unit]),
        false => format!("{value} {}", units[unit]),
    }
}

fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Seconds as people read them.
fn seconds(span: f64) -> String {
    match span {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// One mirror in a few lines.
pub fn status(status: &Status) -> String {
    let place = match status.mountpoint == status.source {
        true => status.source.clone(),
        false => format!("{} at {}", status.source, status.mountpoint),
    };
    let mut lines = vec![format!("{place} -> {}", status.target)];
    lines.push(format!("  state   {}", state_line(status)));
    let link = match (&status.link.since, status.link.connected) {
        (Some(since), true) => format!("connected since {since}"),
        (Some(since), false) => format!("down since {since}"),
        (None, _) => "not tried yet".to_owned(),
    };
    lines.push(format!("  link    {link}"));
    if let (Some(error), false) = (&status.link.last_error, status.link.connected) {
        lines.push(format!("          {error}"));
    }
    let epochs = status.epochs;
    lines.push(format!(
        "  epochs  sealed {}, shipped {}, durable {}, applied {}; {} sent",
        epochs.sealed,
        epochs.shipped,
        epochs.durable,
        epochs.applied,
        bytes(status.bytes_shipped)
    ));
    let unmounted = if status.mounted { "" } else { "; not mounted" };
    let degraded = if status.degraded {
        "; degraded: fsync does not wait now"
    } else {
        ""
    };
    lines.push(format!(
        "  modes   local {}, remote {}{degraded}{unmounted}",
        status.local, status.remote
    ));
    if let Some(halted) = &status.halted {
        lines.extend(halted.to_string().lines().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}

fn state_line(status: &Status) -> String {
    let mut line = status.state.to_string();
    if let Some(progress) = &status.progress {
        let of = progress
            .objects_total
            .map_or(String::new(), |total| format!(" of {total}"));
        line.push_str(&format!(
            ", {}: {}{of} objects, {}",
            progress.what,
            progress.objects,
            bytes(progress.bytes)
        ));
    }
    if status.pending_operations > 0 || status.pending_bytes > 0 {
        line.push_str(&format!(
            "; {} behind: {}, up to {}",
            seconds(status.lag_seconds),
            count(status.pending_operations, "change", "changes"),
            bytes(status.pending_bytes)
        ));
    } else if status.state == Phase::Idle {
        line.push_str(", everything is at the replica");
    }
    line
}

/// What is known of a mirror that nobody serves.
pub fn left_behind(mirror: &Mirror) -> Status {
    Status {
        state: Phase::Offline,
        mounted: false,
        source: mirror.source.display().to_string(),
        target: mirror.target.clone(),
        mountpoint: mirror.mountpoint.display().to_string(),
        state_dir: mirror.state_dir.display().to_string(),
        local: mirror.options.local,
        remote: mirror.options.remote,
        ..Status::default()
    }
}

/// The end of a drain in a line.
pub fn receipt(receipt: &Receipt) -> String {
    format!(
        "epoch {} is applied and durable at the replica; root hash {}; {} sent; {}",
        receipt.epoch,
        receipt.root_hash,
        bytes(receipt.bytes_shipped),
        seconds(receipt.seconds)
    )
}

/// A line on a terminal that says how a long command stands; nothing elsewhere.
pub struct Progress {
    terminal: bool,
    shown: bool,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn new() -> Progress {
        Progress {
            terminal: std::io::stderr().is_terminal(),
            shown: false,
        }
    }

    /// Shows it in place of what was shown before.
    pub fn show(&mut self, status: &Status) {
        if self.terminal {
            let error = status
                .link
                .last_error
                .as_ref()
                .filter(|_| !status.link.connected);
            let error = error.map_or(String::new(), |error| format!(" ({error})"));
            let line: String = format!("{}{error}", state_line(status))
                .chars()
                .take(120)
                .collect();
            let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
            self.shown = true;
        }
    }

    /// Takes it away.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(300 << 20), "300 MiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
        assert_eq!(seconds(0.04), "0.0 s");
        assert_eq!(seconds(75.0), "75 s");
        assert_eq!(seconds(600.0), "10 min");
    }

    #[test]
    fn a_status_is_a_few_lines() {
        let mut shown = Status {
            source: "/p".into(),
            mountpoint: "/p".into(),
            target: "h:/r".into(),
            mounted: true,
            ..Status::default()
        };
        let text = status(&shown);
        assert!(
            text.starts_with("/p -> h:/r\n") && text.lines().count() < 8,
            "{text}"
        );
        assert!(text.contains("everything is at the replica"));
        shown.state = Phase::Offline;
        shown.pending_operations = 1;
        shown.link.last_error = Some("cannot reach h port 22".into());
        let text = status(&shown);
        assert!(
            text.contains("1 change,") && text.contains("cannot reach"),
            "{text}"
        );
    }
}
