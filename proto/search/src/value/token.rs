//! Tokens: `code`, `system|code`, `|code`, `system|`.

use crate::parameter::{FhirType, Path};
use crate::text::{split_unescaped, unescape};
use crate::value::Expected;

/// What the system of a coded value must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum System {
    /// Any, or none.
    Any,
    /// None.
    Absent,
    /// This one.
    Is(String),
}

/// A coded value or an identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) system: System,
    /// None: any code of the system.
    pub(crate) code: Option<String>,
}

impl Token {
    pub(crate) fn parse(text: &str) -> Result<Token, Expected> {
        const EXPECTED: Expected = "code, system|code, |code or system|";
        let plain = |part| unescape(part).map(|part| part.into_owned()).ok_or(EXPECTED);
        match split_unescaped(text, '|')[..] {
            [code] if !code.is_empty() => Ok(Token { system: System::Any, code: Some(plain(code)?) }),
            [system, code] if !(system.is_empty() && code.is_empty()) => Ok(Token {
                system: if system.is_empty() { System::Absent } else { System::Is(plain(system)?) },
                code: if code.is_empty() { None } else { Some(plain(code)?) },
            }),
            _ => Err(EXPECTED),
        }
    }

    /// A token that something at these paths can match.
    pub(crate) fn parse_for(paths: &[Path], text: &str) -> Result<Token, Expected> {
        let token = Token::parse(text)?;
        let boolean = |path: &Path| matches!(path.kind, FhirType::Boolean | FhirType::DateTime);
        if paths.iter().all(boolean) && !matches!(token.code.as_deref(), Some("true" | "false")) {
            return Err("true or false");
        }
        let has_system = |path: &Path| match &path.kind {
            FhirType::Code(systems) => !systems.is_empty(),
            FhirType::Coding | FhirType::CodeableConcept | FhirType::Identifier => true,
            _ => false,
        };
        if matches!(token.system, System::Is(_)) && !paths.iter().any(has_system) {
            return Err("a code without a system");
        }
        Ok(token)
    }
}
