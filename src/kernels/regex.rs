//! Regular expressions in the syntax of RE2, as far as they are regular: no backward references, and time that grows
//! with the text's length only.
//!
//! An expression becomes a small program (Thompson's construction) whose threads step through the text together.
//! Known are literals, `.`, classes, `\d \w \s` and their opposites, groups, `|`, `* + ? {m,n}`, the anchors and the
//! borders of words.

use crate::error::Fault;
use crate::fail;

/// Longer programs than this are refused; repetitions are written out.
const MAX_STEPS: usize = 20_000;

/// A compiled expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regex {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// One character of a set.
    One(Set),
    /// Both ways are tried.
    Split(usize, usize),
    Jump(usize),
    /// The text must begin here.
    Start,
    /// The text must end here.
    End,
    /// A word must begin or end here, or must not.
    Border(bool),
    Match,
}

/// Ranges of characters, or all others.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Set {
    ranges: Vec<(char, char)>,
    negated: bool,
}

impl Set {
    fn of(ranges: &[(char, char)], negated: bool) -> Self {
        Self { ranges: ranges.to_vec(), negated }
    }

    fn contains(&self, c: char) -> bool {
        self.ranges.iter().any(|&(low, high)| (low..=high).contains(&c)) != self.negated
    }

    /// The set that a letter behind a backslash stands for; other letters mean nothing yet.
    fn escaped(letter: char) -> Result<Self, Fault> {
        const DIGITS: &[(char, char)] = &[('0', '9')];
        const WORD: &[(char, char)] = &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];
        const SPACE: &[(char, char)] = &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')];
        Ok(match letter {
            'd' | 'D' => Self::of(DIGITS, letter == 'D'),
            'w' | 'W' => Self::of(WORD, letter == 'W'),
            's' | 'S' => Self::of(SPACE, letter == 'S'),
            'n' => Self::of(&[('\n', '\n')], false),
            't' => Self::of(&[('\t', '\t')], false),
            'r' => Self::of(&[('\r', '\r')], false),
            c if c.is_alphanumeric() => {
                return Err(Fault::unimplemented(format_args!("\\{c} in a regular expression")));
            }
            c => Self::of(&[(c, c)], false),
        })
    }
}

/// An expression before it is a program.
#[derive(Debug, Clone)]
enum Node {
    One(Set),
    Start,
    End,
    Border(bool),
    All(Vec<Node>),
    Any(Vec<Node>),
    Repeat(Box<Node>, usize, Option<usize>),
}

struct Parser<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    depth: usize,
}

impl Parser<'_> {
    fn take(&mut self, c: char) -> bool {
        self.rest.next_if_eq(&c).is_some()
    }

    /// Alternatives up to the end or a closing parenthesis.
    fn any(&mut self) -> Result<Node, Fault> {
        self.depth += 1;
        if self.depth > 100 {
            fail!("groups of a regular expression nest too deep");
        }
        let mut ways = vec![self.all()?];
        while self.take('|') {
            ways.push(self.all()?);
        }
        self.depth -= 1;
        Ok(Node::Any(ways))
    }

    fn all(&mut self) -> Result<Node, Fault> {
        let mut parts = Vec::new();
        while let Some(&c) = self.rest.peek() {
            if matches!(c, '|' | ')') {
                break;
            }
            let atom = self.atom()?;
            parts.push(self.repeated(atom)?);
        }
        Ok(Node::All(parts))
    }

    fn atom(&mut self) -> Result<Node, Fault> {
        let Some(c) = self.rest.next() else { fail!("a regular expression ends too early") };
        Ok(match c {
            '.' => Node::One(Set::of(&[('\n', '\n')], true)),
            '^' => Node::Start,
            '$' => Node::End,
            '[' => Node::One(self.class()?),
            '(' => {
                if self.take('?') && !self.take(':') {
                    return Err(Fault::unimplemented("flags and names in a regular expression"));
                }
                let inner = self.any()?;
                if !self.take(')') {
                    fail!("a group of a regular expression is not closed");
                }
                inner
            }
            '\\' => match self.rest.next() {
                Some(letter @ ('b' | 'B')) => Node::Border(letter == 'b'),
                Some(letter) => Node::One(Set::escaped(letter)?),
                None => fail!("a regular expression ends in a backslash"),
            },
            '*' | '+' | '?' => fail!("{c} in a regular expression repeats nothing"),
            c => Node::One(Set::of(&[(c, c)], false)),
        })
    }

    /// What stands between brackets.
    fn class(&mut self) -> Result<Set, Fault> {
        let negated = self.take('^');
        let mut ranges: Vec<(char, char)> = Vec::new();
        let mut first = true;
        loop {
            let Some(c) = self.rest.next() else { fail!("a class of a regular expression is not closed") };
            match c {
                ']' if !first => return Ok(Set { ranges, negated }),
                '[' if self.rest.peek() == Some(&':') => {
                    return Err(Fault::unimplemented("named classes in a regular expression"));
                }
                '\\' => {
                    let Some(letter) = self.rest.next() else { fail!("a class is not closed") };
                    let set = Set::escaped(letter)?;
                    if set.negated {
                        return Err(Fault::unimplemented("the opposite of a set inside a class"));
                    }
                    ranges.extend(set.ranges);
                }
                '-' if !first && self.rest.peek().is_some_and(|&c| c != ']') => {
                    let Some(high) = self.rest.next().filter(|&c| c != '\\') else { fail!("an odd range") };
                    match ranges.last_mut() {
                        Some(last) if last.0 == last.1 && last.0 <= high => last.1 = high,
                        _ => fail!("a range of a class is out of order"),
                    }
                }
                c => ranges.push((c, c)),
            }
            first = false;
        }
    }

    /// The atom with the repetitions behind it; that they prefer few or many makes no difference here.
    fn repeated(&mut self, mut node: Node) -> Result<Node, Fault> {
        loop {
            let (least, most) = match self.rest.peek().copied() {
                Some('*') if self.take('*') => (0, None),
                Some('+') if self.take('+') => (1, None),
                Some('?') if self.take('?') => (0, Some(1)),
                Some('{') => match self.counts() {
                    Some(counts) => counts,
                    None => return Ok(node), // a brace that stands for itself
                },
                _ => return Ok(node),
            };
            self.take('?');
            if least > 1000 || most.is_some_and(|m| m > 1000 || m < least) {
                fail!("a repetition from {least} to {most:?}");
            }
            node = Node::Repeat(Box::new(node), least, most);
        }
    }

    /// `{m}`, `{m,}` or `{m,n}`, if that is what stands here.
    fn counts(&mut self) -> Option<(usize, Option<usize>)> {
        let mut ahead = self.rest.clone();
        ahead.next();
        let text: String = ahead.by_ref().take_while(|&c| c != '}').collect();
        let counts = match text.split_once(',') {
            None => text.parse().ok().map(|n| (n, Some(n))),
            Some((least, "")) => least.parse().ok().map(|least| (least, None)),
            Some((least, most)) => least.parse().ok().zip(most.parse().ok()).map(|(l, m)| (l, Some(m))),
        }?;
        self.rest = ahead;
        Some(counts)
    }
}

impl Regex {
    /// Compiles an expression.
    pub fn new(pattern: &str) -> Result<Self, Fault> {
        let mut parser = Parser { rest: pattern.chars().peekable(), depth: 0 };
        let node = parser.any()?;
        if parser.rest.next().is_some() {
            fail!("a regular expression closes a group that is not open");
        }
        let mut regex = Self { steps: Vec::new() };
        regex.emit(&node)?;
        regex.steps.push(Step::Match);
        Ok(regex)
    }

    fn emit(&mut self, node: &Node) -> Result<(), Fault> {
        if self.steps.len() > MAX_STEPS {
            fail!("a regular expression is too large");
        }
        match node {
            Node::One(set) => self.steps.push(Step::One(set.clone())),
            Node::Start => self.steps.push(Step::Start),
            Node::End => self.steps.push(Step::End),
            Node::Border(is) => self.steps.push(Step::Border(*is)),
            Node::All(parts) => parts.iter().try_for_each(|part| self.emit(part))?,
            Node::Any(ways) => {
                let mut ends = Vec::new();
                for (i, way) in ways.iter().enumerate() {
                    let split = self.steps.len();
                    let last = i + 1 == ways.len();
                    if !last {
                        self.steps.push(Step::Split(split + 1, 0));
                    }
                    self.emit(way)?;
                    if !last {
                        ends.push(self.steps.len());
                        self.steps.push(Step::Jump(0));
                        self.steps[split] = Step::Split(split + 1, self.steps.len());
                    }
                }
                let end = self.steps.len();
                ends.into_iter().for_each(|at| self.steps[at] = Step::Jump(end));
            }
            Node::Repeat(inner, least, most) => {
                (0..*least).try_for_each(|_| self.emit(inner))?;
                for _ in 0..most.map_or(1, |m| m - least) {
                    let split = self.steps.len();
                    self.steps.push(Step::Split(split + 1, 0));
                    self.emit(inner)?;
                    if most.is_none() {
                        self.steps.push(Step::Jump(split));
                    }
                    self.steps[split] = Step::Split(split + 1, self.steps.len());
                }
            }
        }
        Ok(())
    }

    /// Does the expression describe the whole text?
    pub fn matches(&self, text: &str) -> bool {
        let mut threads = vec![false; self.steps.len()];
        let mut rest = text.chars().peekable();
        self.follow(0, (None, rest.peek().copied()), &mut threads);
        while let Some(c) = rest.next() {
            let mut next = vec![false; self.steps.len()];
            for (at, step) in self.steps.iter().enumerate().filter(|(at, _)| threads[*at]) {
                if matches!(step, Step::One(set) if set.contains(c)) {
                    self.follow(at + 1, (Some(c), rest.peek().copied()), &mut next);
                }
            }
            threads = next;
        }
        threads.last() == Some(&true)
    }

    /// Adds a thread, and those that it becomes without taking a character; `before` and `after` stand around it.
    fn follow(&self, start: usize, (before, after): (Option<char>, Option<char>), threads: &mut [bool]) {
        let word = |c: Option<char>| c.is_some_and(|c| c == '_' || c.is_ascii_alphanumeric());
        let mut open = vec![start];
        while let Some(at) = open.pop() {
            if std::mem::replace(&mut threads[at], true) {
                continue;
            }
            match &self.steps[at] {
                Step::Split(a, b) => open.extend([*a, *b]),
                Step::Jump(to) => open.push(*to),
                Step::Start if before.is_none() => open.push(at + 1),
                Step::End if after.is_none() => open.push(at + 1),
                Step::Border(is) if (word(before) != word(after)) == *is => open.push(at + 1),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        let regex = Regex::new(pattern).unwrap();
        yes.iter().for_each(|text| assert!(regex.matches(text), "{pattern} and {text}"));
        no.iter().for_each(|text| assert!(!regex.matches(text), "{pattern} and {text}"));
    }

    #[test]
    fn expressions() {
        check("", &[""], &["a"]);
        check("a|bc|", &["a", "bc", ""], &["b", "abc"]);
        check("(ab)*c+", &["c", "ababcc"], &["ab", "abac"]);
        check("a{2,3}b{2}c{1,}", &["aabbc", "aaabbccc"], &["abbc", "aaaabbc", "aabc"]);
        check(r"[^a-c\d]+\.", &["xyz.", "d."], &["a.", "x1.", "x"]);
        check(r"^\w+@[\w.-]+$", &["a_b@c-d.e"], &["@c", "a@", "a b@c"]);
        check("(?:a?){30}a{30}", &[&"a".repeat(30), &"a".repeat(45)], &[&"a".repeat(29)]);
        check("(a*)*b", &["b", "aab"], &["a"]);
        check(r"a\b \bb\b", &["a b"], &["a  b"]);
        check(r"a\Bb", &["ab"], &["a", "a b"]);
        check(r"\bword\b", &["word"], &["words"]);
        check(".", &["é", "x"], &["\n", ""]);
        check("x{,2}", &["x{,2}"], &["x"]);
    }

    #[test]
    fn what_is_no_expression() {
        for pattern in ["(", ")", "[a", "*", r"\", "a{3,2}", "[z-a]", "a{1001}"] {
            assert!(Regex::new(pattern).is_err(), "{pattern}");
        }
        assert!(Regex::new("(?i)a").unwrap_err().is_unimplemented());
        assert!(Regex::new("((((a{1000}){1000}){1000}){1000})").is_err());
    }
}
