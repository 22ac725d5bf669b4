//! Durations as people write them.

use super::ConfigError;
use std::time::Duration;

/// The longest duration that is taken: a thousand days. It keeps sums of instants in range.
const DURATION_MAX: Duration = Duration::from_secs(1000 * 24 * 3600);

/// Reads `500ms`, `10s`, `5m`, `1h`, `2d`, or a plain number of seconds, with a fraction or without.
///
/// # Errors
/// When it is none of these, or longer than a thousand days.
pub fn parse_duration(text: &str) -> Result<Duration, ConfigError> {
    let wrong = || ConfigError::Duration(text.to_owned());
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 24.0 * 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let duration = Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())?;
    if duration > DURATION_MAX {
        Err(wrong())
    } else {
        Ok(duration)
    }
}

/// Prints a duration so that [`parse_duration`] reads the same again, to the millisecond.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, millis) in [
            ("500ms", 500),
            ("10", 10_000),
            ("1.5s", 1500),
            ("5m", 300_000),
            ("1h", 3_600_000),
        ] {
            let read = parse_duration(text).expect("a duration");
            assert_eq!(read, Duration::from_millis(millis));
            assert_eq!(parse_duration(&show_duration(read)), Ok(read));
        }
        for bad in [
            "",
            "s",
            "1x",
            "-1s",
            "1.2.3s",
            "99999999d",
            "1 s",
            "nan",
            "inf",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
