//! The picture is well-formed, and shows what it should.

use super::*;
use crate::sensitivity::tests::sensitivity;

/// Checks that a document is well-formed as far as it uses XML: one root, tags that match, attributes quoted
/// and each once, `&` and `<` nowhere but in references and tags. Returns the texts.
fn well_formed(document: &str) -> Result<Vec<String>, String> {
    let mut rest =
        document.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").ok_or("no declaration")?;
    let (mut open, mut texts, mut roots) = (Vec::new(), Vec::new(), 0);
    while let Some(at) = rest.find('<') {
        let (text, tag) = (&rest[..at], &rest[at + 1..]);
        if !text.trim().is_empty() {
            (!open.is_empty()).then_some(()).ok_or("text outside of the root")?;
            texts.push(unescape(text)?);
        }
        let end = tag.find('>').ok_or("a tag without an end")?;
        let (inside, after) = (&tag[..end], &tag[end + 1..]);
        rest = after;
        if let Some(name) = inside.strip_prefix('/') {
            let was: Option<&str> = open.pop();
            (was == Some(name)).then_some(()).ok_or_else(|| format!("</{name}> ends {was:?}"))?;
            continue;
        }
        let (inside, empty) = inside.strip_suffix('/').map_or((inside, false), |inside| (inside, true));
        let (name, mut attributes) = inside.split_once(' ').unwrap_or((inside, ""));
        let letters =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        letters(name).then_some(()).ok_or_else(|| format!("<{inside}>"))?;
        roots += usize::from(open.is_empty());
        let mut seen = Vec::new();
        while !attributes.is_empty() {
            let (key, value) = attributes.split_once("=\"").ok_or_else(|| format!("<{inside}>"))?;
            let (value, more) = value.split_once('"').ok_or_else(|| format!("<{inside}>"))?;
            (letters(key) && !seen.contains(&key))
                .then_some(())
                .ok_or_else(|| format!("{key:?} in <{inside}>"))?;
            seen.push(key);
            unescape(value)?;
            let space = more.is_empty() || more.starts_with(' ');
            attributes = space.then(|| more.trim_start()).ok_or_else(|| format!("<{inside}>"))?;
        }
        if !empty {
            open.push(name);
        }
    }
    match (open.is_empty(), roots, rest.trim()) {
        (true, 1, "") => Ok(texts),
        _ => Err(format!("{open:?} are open, {roots} roots, {rest:?} remains")),
    }
}

fn unescape(text: &str) -> Result<String, String> {
    let mut parts = text.split('&');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, after) = part.split_once(';').ok_or_else(|| format!("& in {text:?}"))?;
        let c = match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            _ => return Err(format!("&{name}; in {text:?}")),
        };
        out.push(c);
        out.push_str(after);
    }
    let bad = out.chars().find(|c| c.is_control() && *c != '\n');
    bad.map_or(Ok(out), |c| Err(format!("{c:?} in {text:?}")))
}

#[test]
fn the_checker_finds_faults() {
    let check = |body: &str| well_formed(&format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}"));
    assert_eq!(check("<a b=\"1\" c=\"&lt;\"><d/>x &amp; y</a>\n").unwrap(), ["x & y"]);
    for bad in [
        "<a>",
        "<a></b>",
        "<a b=1/>",
        "<a b=\"1\" b=\"2\"/>",
        "<a>&</a>",
        "<a/>x",
        "<a/><b/>",
        "<a b=\"1\"c=\"2\"/>",
    ] {
        assert!(check(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_picture_is_well_formed_and_complete() {
    let name = "org/<model> & \"friends\"\u{1}";
    let picture = svg(&sensitivity(), name);
    let texts = well_formed(&picture).unwrap();
    let has = |text: &str| texts.iter().any(|it| it == text);
    // A control character has no place in XML.
    assert!(has("Sensitivity of org/<model> & \"friends\"\u{fffd}"), "{texts:?}");
    assert!(has("mean KL divergence per million weights, one matrix alone in q4"), "{texts:?}");
    assert!(has("calibration: prose & <verse>.txt, 4096 tokens"), "{texts:?}");
    for label in ["q", "o", "down", "embed", "0", "1", "2", "head"] {
        assert!(has(label), "{label}");
    }
    // A cell for each matrix, the experts of a layer sharing one; each has its numbers as a tip.
    assert_eq!(picture.matches("<g>").count(), 2 + 3 * 3);
    let tip = texts.iter().find(|text| text.starts_with("layer.2 down")).unwrap();
    let mean = 4e-5 / 4096.0 * 1e6;
    assert_eq!(
        *tip,
        format!(
            "layer.2 down: {mean:.3e} nats per token and million weights; {:.3e} of 4096 weights, 2 matrices",
            4e-5
        )
    );
    // The ends of the legend: what layer 1 loses by `down`, and layer 0 by `o`.
    for (kl, weights) in [(5e-6, 8192.0), (6e-3, 4096.0)] {
        assert!(has(&digits(kl / weights * 1e6)), "{texts:?}");
    }
    assert!(["1e-2", "1e-1"].iter().all(|power| has(power)), "{texts:?}");
}

#[test]
fn colours_follow_the_logarithm_and_darken() {
    let picture = svg(&sensitivity(), "m");
    let fill = |tip: &str| {
        let before = &picture[..picture.find(&format!("<title>{tip}:")).unwrap()];
        before.rsplit_once("<g>").unwrap().1.split_once("fill=\"").unwrap().1[..7].to_owned()
    };
    assert_eq!(fill("layer.0 o"), colour(Some(1.0)).0);
    assert_eq!(fill("layer.1 down"), colour(Some(0.0)).0);
    assert_eq!(fill("layer.2 o"), "#eeeeee");
    let light = |fill: &str| -> u32 {
        [1, 3, 5].iter().map(|&i| u32::from_str_radix(&fill[i..i + 2], 16).unwrap()).sum()
    };
    let order =
        ["layer.1 down", "layer.0 down", "head", "layer.0 q", "layer.0 o"].map(|tip| light(&fill(tip)));
    assert!(order.is_sorted_by(|a, b| a > b), "{order:?}");
    let scale = Scale { least: 1e-4, most: 1.0 };
    assert!((scale.place(1e-2).unwrap() - 0.5).abs() < 1e-12);
    assert!((scale.value(0.25) - 1e-3).abs() < 1e-15);
}

#[test]
fn models_of_all_sizes_fit() {
    let mut many = sensitivity();
    let layer: Vec<_> = many.tensors[1..4].to_vec();
    many.tensors = (0..126)
        .flat_map(|i| {
            layer.iter().map(move |it| airllm::TensorSensitivity { unit: format!("layer.{i}"), ..it.clone() })
        })
        .collect();
    let picture = svg(&many, &"a very long name ".repeat(30));
    let texts = well_formed(&picture).unwrap();
    let labels = texts.iter().filter(|text| text.parse::<u32>().is_ok()).count();
    assert_eq!(labels, 63, "every second layer is named");
    let height = picture.split_once("height=\"").unwrap().1.split_once('"').unwrap().0;
    assert!(height.parse::<u32>().unwrap() < 1200, "{height}");

    let mut nothing = sensitivity();
    nothing.tensors.iter_mut().for_each(|tensor| tensor.kl = 0.0);
    let texts = well_formed(&svg(&nothing, "m")).unwrap();
    assert!(texts.iter().any(|text| text == "no divergence was measured"));
    nothing.tensors[0].kl = 1e-3;
    let picture = svg(&nothing, "m");
    well_formed(&picture).unwrap();
    assert!(!picture.contains("NaN") && !picture.contains("inf"), "one value alone has a place");
}
