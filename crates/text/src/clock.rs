//! A point in time for templates that print the date.

/// A date and time of day, without a time zone: whoever renders a template decides which clock it
/// sees.
///
/// ```
/// use airllm_text::DateTime;
/// let noon = DateTime::from_unix(1_795_348_800);
/// assert_eq!(noon.format("%Y-%m-%d %H:%M, %A"), "2026-11-22 12:00, Sunday");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    days: i64,
    seconds: u32,
}

const DAY: i64 = 86_400;
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
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

impl DateTime {
    /// The time `seconds` after 1970-01-01 00:00:00, in whichever zone those seconds were counted
    /// (add the zone's offset to get local time).
    pub fn from_unix(seconds: i64) -> Self {
        Self { days: seconds.div_euclid(DAY), seconds: seconds.rem_euclid(DAY) as u32 }
    }

    /// Writes the time as C's `strftime` does in the C locale. Directives that it does not know stay
    /// as they are.
    pub fn format(&self, pattern: &str) -> String {
        let (year, month, day) = civil(self.days);
        let (hour, minute, second) = (self.seconds / 3600, self.seconds / 60 % 60, self.seconds % 60);
        let weekday = self.days.rem_euclid(7) as usize;
        let month_name = MONTHS[month as usize - 1];
        let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
        let mut out = String::with_capacity(pattern.len() + 16);
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let Some(mut directive) = chars.next() else {
                out.push('%');
                break;
            };
            // glibc's `%-d`: no padding.
            let bare = directive == '-';
            if bare {
                match chars.next() {
                    Some(next) => directive = next,
                    None => {
                        out.push_str("%-");
                        break;
                    }
                }
            }
            let two = |n: u32| {
                if bare { n.to_string() } else { format!("{n:02}") }
            };
            let blank = |n: u32| {
                if bare { n.to_string() } else { format!("{n:2}") }
            };
            let piece = match directive {
                'Y' => year.to_string(),
                'y' => two(year.rem_euclid(100) as u32),
                'm' => two(month),
                'd' => two(day),
                'e' => blank(day),
                'B' => month_name.to_owned(),
                'b' | 'h' => month_name[..3].to_owned(),
                'A' => WEEKDAYS[weekday].to_owned(),
                'a' => WEEKDAYS[weekday][..3].to_owned(),
                'H' => two(hour),
                'I' => two(hour12),
                'M' => two(minute),
                'S' => two(second),
                'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
                'j' => {
                    let ordinal = (self.days - days(year, 1, 1) + 1) as u32;
                    if bare { ordinal.to_string() } else { format!("{ordinal:03}") }
                }
                'u' => ((weekday + 3) % 7 + 1).to_string(),
                'w' => ((weekday + 4) % 7).to_string(),
                'F' => self.format("%Y-%m-%d"),
                'T' => self.format("%H:%M:%S"),
                'R' => self.format("%H:%M"),
                'D' | 'x' => self.format("%m/%d/%y"),
                'X' => self.format("%H:%M:%S"),
                'c' => self.format("%a %b %e %H:%M:%S %Y"),
                's' => (self.days * DAY + i64::from(self.seconds)).to_string(),
                'n' => "\n".to_owned(),
                't' => "\t".to_owned(),
                '%' => "%".to_owned(),
                other => format!("%{}{other}", if bare { "-" } else { "" }),
            };
            out.push_str(&piece);
        }
        out
    }
}

/// Year, month and day of a day number (0 is 1970-01-01), in the proleptic Gregorian calendar.
/// Counting years from March makes the leap day the last of its year.
fn civil(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = (of_year - (153 * from_march + 2) / 5 + 1) as u32;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil`].
fn days(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let from_march = i64::from((month + 9) % 12);
    let of_year = (153 * from_march + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_are_inverse() {
        for day in (-1_000_000..1_000_000).step_by(17) {
            let (y, m, d) = civil(day);
            assert!((1..=12).contains(&m) && (1..=31).contains(&d));
            assert_eq!(days(y, m, d), day);
        }
    }

    #[test]
    fn known_dates() {
        let at = |s| DateTime::from_unix(s);
        assert_eq!(at(0).format("%F %T %A %j"), "1970-01-01 00:00:00 Thursday 001");
        assert_eq!(at(951_782_399).format("%d %b %Y"), "28 Feb 2000");
        assert_eq!(at(951_782_400).format("%-d %B %y, %I:%M %p"), "29 February 00, 12:00 AM");
        assert_eq!(at(1_735_689_599).format("%j %e %a %u %w"), "366 31 Tue 2 2");
        assert_eq!(at(-1).format("%F %T"), "1969-12-31 23:59:59");
        assert_eq!(at(0).format("100% %Q %-"), "100% %Q %-");
    }
}
