//! Who was busy when: one lane a reader, one for the consumer, one for copies to a device.

use crate::sync::{Mutex, lock};
use serde::Serialize;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What a lane was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// A reader moves bytes from the source to a slot.
    Read,
    /// The consumer computes with a lease.
    Compute,
    /// The consumer waits for a stripe.
    Wait,
    /// A stripe is on its way to the device: from when the copy was asked for to when the consumer found it
    /// done. Work that the copy waits for counts, and so do copies before it.
    Copy,
}

/// One stretch of work of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// 0 is the consumer, `1 + i` reader `i`, and the one after the last reader the copies to a device.
    pub lane: usize,
    /// What it did.
    pub activity: Activity,
    /// Number of the pass the stripe belongs to.
    pub pass: u64,
    /// Unit of the stripe's first part, index into the catalog.
    pub unit: usize,
    /// Nanoseconds since the timeline began.
    pub start: u64,
    /// Nanoseconds since the timeline began.
    pub end: u64,
    /// Bytes moved or multiplied.
    pub bytes: u64,
}

/// Records events while switched on. Shared by all lanes.
#[derive(Debug)]
pub struct Timeline {
    begun: Instant,
    on: AtomicBool,
    events: Mutex<Vec<Event>>,
}

/// Recording ends here, so that a run of days does not fill the memory: 64 MB of events.
const MOST_EVENTS: usize = 1 << 20;

impl Timeline {
    /// A timeline that begins now.
    pub fn new(on: bool) -> Self {
        Self { begun: Instant::now(), on: AtomicBool::new(on), events: Mutex::new(Vec::new()) }
    }

    /// Nanoseconds since it began.
    pub fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Adds an event, if recording is on.
    pub fn record(&self, event: Event) {
        if self.on.load(Ordering::Relaxed) {
            let mut events = lock(&self.events);
            if events.len() < MOST_EVENTS {
                events.push(event);
            }
        }
    }

    /// All events so far, by start.
    pub fn events(&self) -> Vec<Event> {
        let mut events = lock(&self.events).clone();
        events.sort_by_key(|event| (event.start, event.lane));
        events
    }

    /// Nanoseconds in which at least one reader read while the consumer computed.
    pub fn overlap(&self) -> u64 {
        let events = self.events();
        let computing: Vec<_> = spans(&events, Activity::Compute);
        let reading = union(spans(&events, Activity::Read));
        computing.iter().map(|&span| reading.iter().map(|&other| shared(span, other)).sum::<u64>()).sum()
    }

    /// A picture of `width` columns: a line for each lane, `#` busy, `+` partly, `.` idle; the consumer's
    /// line shows computing, waiting is the rest.
    pub fn gantt(&self, width: usize) -> String {
        let events = self.events();
        let (Some(from), Some(to)) =
            (events.iter().map(|event| event.start).min(), events.iter().map(|event| event.end).max())
        else {
            return String::new();
        };
        let width = width.max(1);
        let step = ((to - from) / width as u64).max(1);
        let lanes = events.iter().map(|event| event.lane).max().unwrap_or(0) + 1;
        let mut picture = String::new();
        for lane in 0..lanes {
            let name = name(lane, &events);
            let spans = union(
                events
                    .iter()
                    .filter(|event| event.lane == lane && event.activity != Activity::Wait)
                    .map(|event| (event.start, event.end))
                    .collect(),
            );
            let mut line = String::with_capacity(width);
            let mut busy = 0;
            for column in 0..width as u64 {
                let cell = (from + column * step, from + (column + 1) * step);
                let share: u64 = spans.iter().map(|&span| shared(span, cell)).sum();
                busy += share;
                line.push(if share * 10 >= step * 9 {
                    '#'
                } else if share > 0 {
                    '+'
                } else {
                    '.'
                });
            }
            let percent = busy * 100 / (step * width as u64);
            let _ = writeln!(picture, "{name:>8} |{line}| {percent:>3} %");
        }
        let _ = writeln!(picture, "{:>8}  {:.3} s in all", "", (to - from) as f64 / 1e9);
        picture
    }

    /// The events in the Trace Event Format that chrome://tracing and Perfetto read; `unit_names` by index.
    pub fn chrome_trace(&self, unit_names: &[String]) -> String {
        let mut events: Vec<serde_json::Value> = Vec::new();
        let mut lanes = Vec::new();
        let all = self.events();
        for event in &all {
            if !lanes.contains(&event.lane) {
                lanes.push(event.lane);
            }
            let unit = unit_names.get(event.unit).map_or("?", String::as_str);
            events.push(serde_json::json!({
                "name": unit,
                "cat": event.activity,
                "ph": "X",
                "ts": event.start as f64 / 1e3,
                "dur": (event.end - event.start) as f64 / 1e3,
                "pid": 1,
                "tid": event.lane,
                "args": { "bytes": event.bytes, "pass": event.pass, "activity": event.activity },
            }));
        }
        for lane in lanes {
            let name = name(lane, &all);
            events.push(serde_json::json!({
                "name": "thread_name", "ph": "M", "pid": 1, "tid": lane, "args": { "name": name },
            }));
        }
        serde_json::json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string()
    }
}

fn name(lane: usize, events: &[Event]) -> String {
    if events.iter().any(|event| event.lane == lane && event.activity == Activity::Copy) {
        return "copy".to_owned();
    }
    if lane == 0 { "compute".to_owned() } else { format!("read {lane}") }
}

type Span = (u64, u64);

fn spans(events: &[Event], activity: Activity) -> Vec<Span> {
    events.iter().filter(|event| event.activity == activity).map(|e| (e.start, e.end)).collect()
}

fn shared(a: Span, b: Span) -> u64 {
    a.1.min(b.1).saturating_sub(a.0.max(b.0))
}

/// Merges spans that touch.
fn union(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.0 <= last.1 => last.1 = last.1.max(span.1),
            _ => merged.push(span),
        }
    }
    merged
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    fn event(lane: usize, activity: Activity, start: u64, end: u64) -> Event {
        Event { lane, activity, pass: 0, unit: 0, start, end, bytes: 1 }
    }

    fn timeline(events: &[Event]) -> Timeline {
        let timeline = Timeline::new(true);
        events.iter().for_each(|event| timeline.record(event.clone()));
        timeline
    }

    #[test]
    fn overlap_counts_each_moment_once() {
        let timeline = timeline(&[
            event(0, Activity::Compute, 10, 30),
            event(1, Activity::Read, 0, 20),
            event(2, Activity::Read, 15, 25),
            event(0, Activity::Wait, 30, 40),
            event(1, Activity::Read, 30, 40),
        ]);
        assert_eq!(timeline.overlap(), 15);
    }

    #[test]
    fn gantt_shows_busy_and_idle() {
        let timeline = timeline(&[event(0, Activity::Compute, 0, 500), event(1, Activity::Read, 500, 1000)]);
        let picture = timeline.gantt(10);
        assert!(picture.contains("compute |#####.....|  50 %"), "{picture}");
        assert!(picture.contains("read 1 |.....#####|  50 %"), "{picture}");
        assert_eq!(Timeline::new(true).gantt(10), "");
    }

    #[test]
    fn chrome_trace_is_json_with_names() {
        let timeline = timeline(&[event(1, Activity::Read, 1000, 3000)]);
        let value: serde_json::Value =
            serde_json::from_str(&timeline.chrome_trace(&["layer.0".into()])).unwrap();
        assert_eq!(value["traceEvents"][0]["name"], "layer.0");
        assert_eq!(value["traceEvents"][0]["dur"], 2.0);
        assert_eq!(value["traceEvents"][1]["args"]["name"], "read 1");
    }

    #[test]
    fn copies_have_a_line_of_their_own() {
        let timeline = timeline(&[event(0, Activity::Compute, 0, 500), event(2, Activity::Copy, 500, 1000)]);
        let picture = timeline.gantt(10);
        assert!(picture.contains("copy |.....#####|  50 %"), "{picture}");
        assert!(timeline.chrome_trace(&[]).contains("\"copy\""));
    }

    #[test]
    fn switched_off_records_nothing() {
        let timeline = Timeline::new(false);
        timeline.record(event(0, Activity::Read, 0, 1));
        assert!(timeline.events().is_empty());
    }
}
