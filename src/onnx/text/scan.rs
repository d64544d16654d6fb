//! Characters to words, names and literals. The scanner knows no grammar; it knows where it is.

use std::any::type_name;

use super::{ParseError, is_special_float};

pub(super) type Parse<T> = Result<T, ParseError>;

/// Graphs within attributes and types within types may nest this deep.
const MAX_DEPTH: usize = 32;

pub(super) struct Scanner<'a> {
    text: &'a str,
    /// Byte offset of the next character; always on a character boundary.
    at: usize,
    depth: usize,
}

/// A number as written, read in every precision that a target may ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Number {
    /// `None` if written with a point, an exponent, or in letters.
    pub int: Option<i128>,
    pub single: f32,
    pub double: f64,
}

impl Number {
    /// The number as an integer, or an error at `mark`.
    pub fn int<T: TryFrom<i128>>(self, s: &Scanner, mark: usize) -> Parse<T> {
        let Some(int) = self.int else { return s.fail_at(mark, "expected an integer") };
        T::try_from(int).or_else(|_| s.fail_at(mark, format!("{int} does not fit {}", type_name::<T>())))
    }

    /// The number in single precision, or an error at `mark`.
    pub fn single(self, s: &Scanner, mark: usize) -> Parse<f32> {
        if self.single.is_infinite() && self.double.is_finite() {
            return s.fail_at(mark, "this number is too large for single precision");
        }
        Ok(self.single)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    Number(Number),
    Text(String),
}

impl<'a> Scanner<'a> {
    pub fn new(text: &'a str) -> Self {
        Scanner { text, at: 0, depth: 0 }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Moves past white space and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest().trim_start();
            self.at = self.text.len() - rest.len();
            if !(rest.starts_with('#') || rest.starts_with("//")) {
                return;
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    /// Where the next token starts; for [`Self::fail_at`].
    pub fn mark(&mut self) -> usize {
        self.skip();
        self.at
    }

    /// Goes back to an earlier [`Self::mark`].
    pub fn rewind(&mut self, mark: usize) {
        self.at = mark;
    }

    /// An error at the next token.
    pub fn fail<T>(&mut self, message: impl Into<String>) -> Parse<T> {
        let at = self.mark();
        self.fail_at(at, message)
    }

    /// An error at an earlier [`Self::mark`].
    pub fn fail_at<T>(&self, mark: usize, message: impl Into<String>) -> Parse<T> {
        let before = self.text.get(..mark).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Err(ParseError { line, column, message: message.into() })
    }

    fn fail_expecting<T>(&mut self, what: &str) -> Parse<T> {
        match self.peek() {
            Some(found) => self.fail(format!("expected {what}, found `{}`", found.escape_debug())),
            None => self.fail(format!("expected {what}, found the end of the text")),
        }
    }

    /// The next character that is neither white space nor comment.
    pub fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest().chars().next()
    }

    pub fn eat(&mut self, token: &str) -> bool {
        self.skip();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    pub fn expect(&mut self, token: &str) -> Parse<()> {
        if self.eat(token) { Ok(()) } else { self.fail_expecting(&format!("`{token}`")) }
    }

    /// `open item, item, … close`, possibly empty.
    pub fn list<T>(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Parse<T>,
    ) -> Parse<Vec<T>> {
        self.expect(open)?;
        let mut items = Vec::new();
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(close) {
                return Ok(items);
            }
            if !self.eat(",") {
                return self.fail_expecting(&format!("`,` or `{close}`"));
            }
        }
    }

    /// Runs `inner` one nesting level down.
    pub fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parse<T>) -> Parse<T> {
        if self.depth == MAX_DEPTH {
            return self.fail(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// The next unquoted identifier, left in place.
    pub fn peek_word(&mut self) -> Option<&'a str> {
        self.skip();
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let word = rest.get(..end)?;
        word.starts_with(|c: char| !c.is_ascii_digit()).then_some(word)
    }

    pub fn word(&mut self, what: &str) -> Parse<&'a str> {
        match self.peek_word() {
            Some(word) => {
                self.at += word.len();
                Ok(word)
            }
            None => self.fail_expecting(what),
        }
    }

    /// A name, quoted or not, if there is one.
    pub fn optional_name(&mut self) -> Parse<Option<String>> {
        if self.peek() == Some('"') {
            return self.string().map(Some);
        }
        match self.peek_word() {
            Some(_) => self.word("a name").map(|word| Some(word.to_string())),
            None => Ok(None),
        }
    }

    pub fn name(&mut self, what: &str) -> Parse<String> {
        match self.optional_name()? {
            Some(name) => Ok(name),
            None => self.fail_expecting(what),
        }
    }

    /// A string in double quotes. A backslash takes the next character as it is.
    pub fn string(&mut self) -> Parse<String> {
        if self.peek() != Some('"') {
            return self.fail_expecting("a string");
        }
        let start = self.at;
        let mut value = String::new();
        let mut characters = self.rest().char_indices().skip(1);
        while let Some((offset, character)) = characters.next() {
            match character {
                '"' => {
                    self.at += offset + 1;
                    return Ok(value);
                }
                '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                _ => value.push(character),
            }
        }
        self.fail_at(start, "this string has no end")
    }

    pub fn int(&mut self) -> Parse<i64> {
        let mark = self.mark();
        self.number()?.int(self, mark)
    }

    pub fn literal(&mut self) -> Parse<Literal> {
        if self.peek() == Some('"') {
            self.string().map(Literal::Text)
        } else {
            self.number().map(Literal::Number)
        }
    }

    /// `-?digits`, with an optional fraction and exponent, or `-?` and `inf`, `infinity` or `nan`.
    pub fn number(&mut self) -> Parse<Number> {
        let mark = self.mark();
        let rest = self.rest();
        let unsigned = rest.strip_prefix('-').unwrap_or(rest);
        let sign = rest.len() - unsigned.len();
        let letters = unsigned.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(unsigned.len());
        let special = unsigned.get(..letters).is_some_and(is_special_float);
        let length = sign + if special { letters } else { numeral_length(unsigned) };
        let text = rest.get(..length).unwrap_or_default();
        let (Ok(single), Ok(double)) = (text.parse::<f32>(), text.parse::<f64>()) else {
            return self.fail_expecting("a number");
        };
        if double.is_infinite() && !special {
            return self.fail_at(mark, "this number is out of range");
        }
        self.at += length;
        Ok(Number { int: text.parse().ok(), single, double })
    }

    pub fn at_end(&mut self) -> bool {
        self.peek().is_none()
    }
}

/// The length of the decimal number that `text` starts with; 0 if it starts with none.
fn numeral_length(text: &str) -> usize {
    let digits = |from: usize| text.bytes().skip(from).take_while(u8::is_ascii_digit).count();
    let byte = |at: usize| text.as_bytes().get(at).copied();
    let mut end = digits(0);
    if end == 0 {
        return 0;
    }
    if byte(end) == Some(b'.') {
        end += 1 + digits(end + 1);
    }
    if matches!(byte(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(byte(end + 1), Some(b'+' | b'-')));
        end += 1 + sign + digits(end + 1 + sign);
    }
    end
}
