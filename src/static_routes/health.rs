//! Whether a static route's backends serve, judged by what they answered. Pure: no I/O, no clock.
//!
//! | before    | answer                       | after      |
//! |-----------|------------------------------|------------|
//! | any       | success                      | up         |
//! | up        | 401, 403                     | unproven, which counts as up |
//! | otherwise | 401, 403                     | as before  |
//! | otherwise | the third of these in a row  | unproven   |
//! | any       | a failure                    | as before  |
//! | any       | the third of these in a row  | down       |
//!
//! A failure is still in a row with the last one where only one or two answers of 401 or 403 came in between: somebody
//! who denies and fails by turns serves nobody, and is not left undecided or up for ever.
//!
//! A kube-apiserver that starts answers 403 before it knows its own roles, and then 500 until it is ready (measured,
//! 1.36): a single 403 would bring its route back before it serves anybody.
//!
//! An apiserver before Kubernetes 1.16 has no `/readyz`: its 404 is followed by `/healthz` at once, and from the first
//! answer there that is no failure only that is asked. What else a 404 says is a failure like any other.

/// As many failures in a row take a route away, a kubelet's default; and as many answers in a row that prove little
/// bring it.
const IN_A_ROW: u32 = 3;

/// Where a question goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// To the URL that was configured.
    Configured,
    /// To `/healthz` of the same server.
    Healthz,
}

/// A status, or why there was none.
pub type Answer = Result<u16, String>;

/// What is known of a route's backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet: nothing is published, and nothing that lives is withdrawn.
    #[default]
    Undecided,
    /// They serve.
    Up,
    /// Somebody answers, but only that we may not ask: with this status.
    Unproven(u16),
    /// They do not, and why.
    Down(String),
}

/// One route's answers so far.
#[derive(Clone, Debug)]
pub struct Health {
    verdict: Verdict,
    /// Since the last success, or since as many denials in a row as prove a little.
    failures: u32,
    /// Answers in a row that we may not ask.
    denials: u32,
    older: Older,
}

/// Whether this may be an apiserver without `/readyz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Older {
    /// Something else was configured.
    Never,
    /// Unless it answers 404.
    Perhaps,
    /// It did; `/healthz` has not answered yet.
    Asking,
    /// It is.
    Is,
}

// === impl Verdict ===

impl Verdict {
    /// As logs say it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Undecided => "undecided",
            Self::Up => "up",
            Self::Unproven(_) => "unproven",
            Self::Down(_) => "down",
        }
    }
}

// === impl Health ===

impl Health {
    /// Of which nothing is known; `readyz` tells whether that is what is asked for.
    #[must_use]
    pub fn new(readyz: bool) -> Self {
        Self {
            verdict: Verdict::Undecided,
            failures: 0,
            denials: 0,
            older: if readyz { Older::Perhaps } else { Older::Never },
        }
    }

    /// What to ask next.
    #[must_use]
    pub fn question(&self) -> Question {
        match self.older {
            Older::Never | Older::Perhaps => Question::Configured,
            Older::Asking | Older::Is => Question::Healthz,
        }
    }

    /// What is known.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Takes an answer; whether the next question is to follow at once.
    pub fn hear(&mut self, answer: &Answer) -> bool {
        if self.older == Older::Perhaps && *answer == Ok(404) {
            self.older = Older::Asking;
            return true;
        }
        if self.older == Older::Asking {
            self.older = match failure(answer) {
                Some(_) => Older::Perhaps,
                None => Older::Is,
            };
        }
        match answer {
            Ok(200..=299) => {
                self.verdict = Verdict::Up;
                (self.failures, self.denials) = (0, 0);
            }
            Ok(status @ (401 | 403)) => self.deny(*status),
            Ok(_) | Err(_) => self.fail(answer),
        }
        false
    }

    fn deny(&mut self, status: u16) {
        self.denials = self.denials.saturating_add(1);
        if self.denials >= IN_A_ROW {
            self.failures = 0;
        }
        let is_up = matches!(self.verdict, Verdict::Up | Verdict::Unproven(_));
        if is_up || self.denials >= IN_A_ROW {
            self.verdict = Verdict::Unproven(status);
        }
    }

    fn fail(&mut self, answer: &Answer) {
        self.denials = 0;
        self.failures = self.failures.saturating_add(1);
        // The first reason stays, so that it is told once.
        let is_down = matches!(self.verdict, Verdict::Down(_));
        if self.failures >= IN_A_ROW && !is_down {
            self.verdict = Verdict::Down(failure(answer).unwrap_or_default());
        }
    }
}

/// Why an answer counts for a failure, if it does.
#[must_use]
pub fn failure(answer: &Answer) -> Option<String> {
    match answer {
        Ok(200..=299 | 401 | 403) => None,
        Ok(status) => Some(format!("it answers {status}")),
        Err(why) => Some(why.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdicts after each answer; 0 stands for none at all.
    fn verdicts(readyz: bool, answers: &[u16]) -> Vec<&'static str> {
        let mut health = Health::new(readyz);
        let mut hear = |status: &u16| {
            let answer = match status {
                0 => Err("nobody answers".to_owned()),
                status => Ok(*status),
            };
            health.hear(&answer);
            health.verdict().as_str()
        };
        answers.iter().map(&mut hear).collect()
    }

    #[test]
    fn a_route_is_up_after_one_success_and_down_after_three_failures_in_a_row() {
        assert_eq!(verdicts(true, &[200, 0, 500, 200]), ["up"; 4]);
        assert_eq!(
            verdicts(true, &[0, 0, 0, 0, 200]),
            ["undecided", "undecided", "down", "down", "up"]
        );
        assert_eq!(
            verdicts(true, &[0, 0, 204, 302, 0, 500]),
            ["undecided", "undecided", "up", "up", "up", "down"]
        );
    }

    #[test]
    fn who_may_not_ask_takes_the_backend_for_up_after_three_such_answers() {
        assert_eq!(
            verdicts(true, &[401, 403, 401, 0, 200, 403]),
            [
                "undecided",
                "undecided",
                "unproven",
                "unproven",
                "up",
                "unproven"
            ]
        );
    }

    #[test]
    fn an_apiserver_that_starts_is_back_once_it_is_ready() {
        assert_eq!(
            verdicts(true, &[200, 0, 0, 0, 403, 500, 403, 403, 500, 200]),
            [
                "up", "up", "up", "down", "down", "down", "down", "down", "down", "up"
            ]
        );
    }

    #[test]
    fn failures_are_counted_through_answers_that_prove_little() {
        assert_eq!(
            verdicts(true, &[200, 403, 500, 403, 500, 403, 500, 403]),
            [
                "up", "unproven", "unproven", "unproven", "unproven", "unproven", "down", "down"
            ]
        );
        let mut undecided = vec!["undecided"; 8];
        undecided.push("down");
        assert_eq!(
            verdicts(true, &[403, 403, 500, 403, 403, 500, 403, 403, 500]),
            undecided
        );
    }

    #[test]
    fn three_answers_in_a_row_that_prove_little_end_the_count_of_failures() {
        let calm = [200, 500, 500, 403, 403, 403, 500, 500, 403];
        assert!(!verdicts(true, &calm).contains(&"down"));
        // Three failures before it was down, and none of them counts once it is back.
        let back = [0, 0, 0, 403, 403, 403, 500, 500];
        assert_eq!(verdicts(true, &back)[5..], ["unproven"; 3]);
    }

    #[test]
    fn the_reason_of_a_verdict_is_the_third_failures_and_stays() {
        let mut health = Health::new(true);
        for answer in [Err("a".to_owned()), Err("b".to_owned()), Ok(503), Ok(500)] {
            health.hear(&answer);
        }
        let expect = Verdict::Down("it answers 503".to_owned());
        assert_eq!(health.verdict(), &expect);
    }

    #[test]
    fn an_apiserver_without_readyz_is_asked_for_healthz_from_then_on() {
        let mut health = Health::new(true);
        assert!(health.hear(&Ok(404)), "the next question follows at once");
        assert_eq!(health.question(), Question::Healthz);
        assert!(!health.hear(&Ok(200)));
        assert_eq!(health.verdict(), &Verdict::Up);
        for answer in [Ok(404), Err(String::new()), Ok(500)] {
            assert_eq!(health.question(), Question::Healthz);
            assert!(!health.hear(&answer), "once only");
        }
        assert!(matches!(health.verdict(), Verdict::Down(_)));
    }

    #[test]
    fn whoever_has_neither_is_asked_for_readyz_again() {
        let mut health = Health::new(true);
        for round in 1..=3 {
            assert_eq!(health.question(), Question::Configured);
            assert!(health.hear(&Ok(404)));
            assert!(!health.hear(&Ok(404)));
            let down = matches!(health.verdict(), Verdict::Down(_));
            assert_eq!(down, round == 3, "both answers are one failure");
        }
    }

    #[test]
    fn a_404_of_another_page_is_a_failure() {
        assert_eq!(
            verdicts(false, &[404, 404, 404]),
            ["undecided", "undecided", "down"]
        );
    }
}
