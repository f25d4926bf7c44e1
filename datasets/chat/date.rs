//! Dates in the words of `strftime`.

use minijinja::{Error, ErrorKind};

/// Seconds since 1970 in the words of `strftime`, universal time.
pub(super) fn strftime(format: &str, seconds: i64) -> Result<String, Error> {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let (year, month, day) = civil(days);
    let weekday = (days + 4).rem_euclid(7) as usize;
    let (name_of_month, name_of_day) = (MONTHS[month as usize - 1], DAYS[weekday]);
    let of_year = days - days_of(year, 1, 1) + 1;
    let twelve = (hour + 11) % 12 + 1;
    let half = if hour < 12 { "AM" } else { "PM" };
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        // glibc's flag for "no leading zero".
        let bare = directive == Some('-');
        if bare {
            directive = chars.next();
        }
        let two = |n: i64| if bare { n.to_string() } else { format!("{n:02}") };
        let text = match directive {
            Some('Y') => year.to_string(),
            Some('y') => two(year.rem_euclid(100)),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two(twelve),
            Some('M') => two(minute),
            Some('S') => two(second % 60),
            Some('j') if bare => of_year.to_string(),
            Some('j') => format!("{of_year:03}"),
            Some('p') => half.into(),
            Some('B') => name_of_month.into(),
            Some('b' | 'h') => name_of_month[..3].into(),
            Some('A') => name_of_day.into(),
            Some('a') => name_of_day[..3].into(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('Z') => String::new(),
            Some('%') => "%".into(),
            other => {
                let name = other.map(String::from).unwrap_or_default();
                let reason = format!("strftime_now: the directive %{name} is not known");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        };
        out.push_str(&text);
    }
    Ok(out)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar: counted
/// in eras of 400 years that begin in March, so that leap days come last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil`].
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let date = |seconds| strftime("%Y-%m-%d %H:%M:%S %A %j", seconds).unwrap();
        assert_eq!(date(0), "1970-01-01 00:00:00 Thursday 001");
        assert_eq!(date(951_782_399), "2000-02-28 23:59:59 Monday 059");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00 Tuesday 060");
        assert_eq!(date(1_735_689_599), "2024-12-31 23:59:59 Tuesday 366");
        assert_eq!(date(-1), "1969-12-31 23:59:59 Wednesday 365");
        assert_eq!(
            strftime("%d %b %Y, %-d. %B %y %I %p%%", 1_722_470_400 + 13 * 3600).unwrap(),
            "01 Aug 2024, 1. August 24 01 PM%"
        );
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }
}
