//! Text that others wrote, made fit for people to read.
//!
//! Whoever may write a Service may write anything into it: an escape sequence would move the terminal's cursor, a
//! newline forge a line of ours, a change of direction show a text backwards. The one place that takes them out and
//! that bounds a quotation; where it is shown is unknown here.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters of a quotation: whoever wrote the text knows it by its beginning.
const QUOTED_MAX: usize = 100;

/// The text as one line that shows everything it holds: what would control a terminal or cannot be seen is escaped.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// A JSON text with the same escaped; outside of strings it may hold newlines alone. `serde_json` escapes what JSON
/// demands, which is ASCII's: a terminal takes U+009B for the beginning of a sequence as well.
pub(crate) fn json(text: String) -> String {
    let unseen = |c: char| hidden(c) && c != '\n';
    if !text.contains(unseen) {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if unseen(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing into a String cannot fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The beginning of a text that may be as long as it likes.
pub(crate) fn clipped(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// Control characters, and of Unicode's format characters those that hide, join or turn what stands beside them.
fn hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_moves_the_cursor_forges_a_line_or_turns_the_text_around() {
        for (text, shown) in [
            ("plain `ä→` text", "plain `ä→` text"),
            ("1\x1b[2J\nerror", "1\\u{1b}[2J\\nerror"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("\u{202e}abc\u{200b}", "\\u{202e}abc\\u{200b}"),
        ] {
            assert_eq!(one_line(text), shown);
        }
    }

    proptest! {
        #[test]
        fn json_shows_what_it_hides_and_says_the_same(text in any::<String>(), odd in "[\u{7f}-\u{ad}\u{200b}-\u{206f}\u{e0001}-\u{e007f}\n]*") {
            let said = vec![text, odd];
            let shown = json(serde_json::to_string(&said).unwrap());
            prop_assert!(!shown.contains(hidden), "{}", shown);
            prop_assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), said);
        }
    }

    #[test]
    fn a_quotation_is_cut_between_characters() {
        assert_eq!(clipped("ä"), "ä");
        assert_eq!(clipped(&"ä".repeat(QUOTED_MAX)), "ä".repeat(QUOTED_MAX));
        let cut = clipped(&"ä".repeat(200_000)).into_owned();
        assert_eq!(cut, format!("{}…", "ä".repeat(QUOTED_MAX)));
    }
}
