//! What of a source file goes into the patch, as far as the target has it.

use super::names::{Proven, lacks_name, lacks_record, prove};
use super::{Aim, Error, Pair};
use crate::compare::{self, Context, Options, Status, Texts};
use crate::emit;
use livegraft_patchfile::Input;
use std::collections::BTreeSet;

/// The proofs of the targets, made when they are first asked for: most refusals need none.
#[derive(Default)]
pub(super) struct Proofs<'a>(Option<Vec<Proven<'a>>>);

impl<'a> Proofs<'a> {
    pub fn of(&mut self, aims: &'a [Aim<'_>]) -> Result<&[Proven<'a>], Error> {
        let proven = match self.0.take() {
            Some(proven) => proven,
            None => aims.iter().map(prove).collect::<Result<_, _>>()?,
        };
        Ok(self.0.insert(proven))
    }
}

/// Both objects of a source file.
pub(super) struct Both<'f> {
    pub pair: &'f Pair,
    pub original: &'f [u8],
    pub patched: &'f [u8],
    pub described: Option<[&'f [u8]; 2]>,
}

/// What differs in a source file.
pub(super) struct Differing {
    /// What the patch needs of it; `None` if its code does not differ.
    pub extract: Option<Vec<u8>>,
    /// A function of the target gets a new version.
    pub replaces: bool,
    /// What `--with-callers` names and nothing in it calls.
    pub uncalled: Vec<String>,
}

/// Compares both objects of a source file, and takes out what the patch needs.
pub(super) fn differing<'a>(
    file: &Both<'_>,
    aims: &'a [Aim<'_>],
    proofs: &mut Proofs<'a>,
    (options, texts): (&Options, &dyn Texts),
) -> Result<Differing, Error> {
    let path = &file.pair.source;
    let failed = |source| Error::Compare {
        source_file: path.clone(),
        source,
    };
    let mut context = Context {
        described: file.described,
        absent: BTreeSet::new(),
    };
    loop {
        let compared = compare::compare_with(file.original, file.patched, &context, options, texts);
        let compared = compared.map_err(failed)?;
        if let Some(refusal) = compared.refusals.first() {
            return Err(Error::Refused {
                source_file: path.clone(),
                refusal: Box::new(refusal.clone()),
            });
        }
        if !compared.changes_code() {
            return Ok(Differing {
                extract: None,
                replaces: false,
                uncalled: compared.uncalled,
            });
        }
        let extract = compare::extract_with(&compared, path, texts).map_err(failed)?;
        let input = Input {
            path,
            bytes: &extract,
        };
        // Each round takes what the linker has removed out of the comparison, and what remains may need more.
        let needs = emit::needs(&input)?;
        let proven = proofs.of(aims)?;
        let targets = || aims.iter().zip(proven);
        let records = needs.replaced.iter().chain(&needs.locals);
        let records = records.filter(|record| {
            let lacks = |(aim, proven)| lacks_record(aim, proven, file.pair, record);
            record.occurrence == 0 && targets().all(lacks)
        });
        let records = records.map(|record| (record.name.clone(), record.file.clone()));
        let defined = compared.defined();
        let names = needs.undefined.iter().filter(|name| {
            let lacks = |(aim, proven)| lacks_name(aim, proven, name);
            defined.contains(name.as_str()) && targets().all(lacks)
        });
        let names = names.map(|name| (name.clone(), None));
        let absent: Vec<_> = records.chain(names).collect();
        let before = context.absent.len();
        context.absent.extend(absent);
        if context.absent.len() == before {
            let mut functions = compared.functions.iter();
            return Ok(Differing {
                extract: Some(extract),
                replaces: functions.any(|function| function.status == Status::Changed),
                uncalled: compared.uncalled,
            });
        }
    }
}
