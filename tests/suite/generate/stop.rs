//! Strings that end a text, whatever pieces they come in.

use longburn::Error;
use longburn::models::generate::StopStrings;
use proptest::prelude::*;

/// What comes out of pieces, piece by piece and in the end, and whether a stop string did.
fn through(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
    let mut stop = StopStrings::new(stops.iter().copied()).unwrap();
    let mut out: Vec<String> = pieces.iter().map(|piece| stop.push(piece)).collect();
    let found = stop.found();
    out.push(stop.finish());
    (out, found)
}

#[test]
fn text_is_held_back_until_it_is_certain() {
    let stops = ["</end>", "\n\nUser:"];
    // Spread over pieces.
    let (out, found) = through(&stops, &["Yes", "</", "en", "d> and more"]);
    assert!(found);
    assert_eq!(out, ["Yes", "", "", "", ""]);
    // What looked like a stop string and is none comes out with what shows it.
    let (out, found) = through(&stops, &["a</", "en", "dless", "\n", "\nUse", "d"]);
    assert!(!found);
    assert_eq!(out, ["a", "", "</endless", "", "", "\n\nUsed", ""]);
    // At the end there is nothing left to wait for.
    let (out, found) = through(&stops, &["a</en"]);
    assert!(!found);
    assert_eq!(out.concat(), "a</en");
    // The earliest one ends the text, and nothing follows it.
    let (out, _) = through(&["b", "a"], &["xaxb", "more"]);
    assert_eq!(out, ["x", "", ""]);
    // Characters of several bytes, and a beginning within a beginning.
    let (out, found) = through(&["ää→"], &["1äää", "→2"]);
    assert!(found);
    assert_eq!(out.concat(), "1ä");
    assert_eq!(through(&[], &["a", "b"]).0, ["a", "b", ""]);
}

#[test]
fn an_empty_stop_string_is_refused() {
    let error = StopStrings::new(["x", ""]).unwrap_err();
    assert!(matches!(error, Error::Config { ref field, .. } if field == "stop string"), "{error}");
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        text in "[ab→]{0,24}",
        stops in prop::collection::vec("[ab→]{2,4}", 0..3),
        cuts in prop::collection::vec(0usize..24, 0..6),
    ) {
        let chars: Vec<char> = text.chars().collect();
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < chars.len()).collect();
        cuts.extend([0, chars.len()]);
        cuts.sort();
        let pieces: Vec<String> =
            cuts.windows(2).map(|w| chars[w[0]..w[1]].iter().collect()).collect();
        let mut stop = StopStrings::new(stops.clone()).unwrap();
        let mut out = String::new();
        let mut ended_in = text.len();
        let mut read = 0;
        for piece in &pieces {
            out.push_str(&stop.push(piece));
            read += piece.len();
            if stop.found() {
                ended_in = read;
                break;
            }
            // Never more than was read, and never what a stop string could still begin with.
            prop_assert!(text[..read].starts_with(&out));
        }
        let found = stop.found();
        out.push_str(&stop.finish());
        // The first piece with which a stop string is complete decides.
        let seen = &text[..ended_in];
        let first = stops.iter().filter_map(|s| seen.find(s.as_str())).min();
        prop_assert_eq!(found, first.is_some());
        prop_assert_eq!(out, &seen[..first.unwrap_or(seen.len())]);
    }
}
