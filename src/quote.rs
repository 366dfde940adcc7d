//! Text that others wrote, made fit for people to read.
//!
//! Whoever may write a Service may write anything into it: an escape sequence would move the terminal's cursor, a
//! newline forge a line of ours, a change of direction show a text backwards. The one place that takes them out and
//! that bounds a quotation; where it is shown is unknown here.

use std::borrow::Cow;

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

    #[test]
    fn a_quotation_is_cut_between_characters() {
        assert_eq!(clipped("ä"), "ä");
        assert_eq!(clipped(&"ä".repeat(QUOTED_MAX)), "ä".repeat(QUOTED_MAX));
        let cut = clipped(&"ä".repeat(200_000)).into_owned();
        assert_eq!(cut, format!("{}…", "ä".repeat(QUOTED_MAX)));
    }
}
