//! The stack of a task, as JSON and as text.

use livegraft_patchfile::counted;
use livegraft_process::symbolize::{NamedFrame, NamedStack};
use serde::Serialize;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

/// So many frames are shown as text; JSON has them all.
const MOST_SHOWN: usize = 32;
/// A column that is wider is not waited for by the others.
const WIDEST: usize = 40;

#[derive(Debug, Serialize)]
pub struct Stack {
    frames: Vec<Frame>,
    complete: bool,
    /// What the task is held by: the frame at this address is marked.
    #[serde(skip)]
    held_at: u64,
}

#[derive(Debug, Serialize)]
struct Frame {
    address: String,
    function: Option<String>,
    offset: Option<u64>,
    object: Option<String>,
    file: Option<String>,
    line: Option<u64>,
    inlined: bool,
    #[serde(skip)]
    at: u64,
}

impl Frame {
    fn new(frame: &NamedFrame) -> Frame {
        Frame {
            address: format!("{:#x}", frame.address),
            function: frame.function.clone(),
            offset: frame.offset,
            object: frame.object.clone(),
            file: frame.file.clone(),
            line: frame.line,
            inlined: frame.inlined,
            at: frame.address,
        }
    }

    /// `function+0x12`, `function (inlined)`, `OBJECT+0x1234` or the bare address.
    fn title(&self) -> String {
        let offset = self.offset.map(|offset| format!("+{offset:#x}"));
        let offset = offset.unwrap_or_default();
        match (&self.function, &self.object) {
            (Some(function), _) if self.inlined => format!("{function} (inlined)"),
            (Some(function), _) => format!("{function}{offset}"),
            (None, _) if self.inlined => "? (inlined)".to_owned(),
            (None, Some(object)) => format!("{object}{offset}"),
            (None, None) => self.address.clone(),
        }
    }

    /// `FILE:LINE`.
    fn place(&self) -> String {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => format!("{file}:{line}"),
            (Some(file), None) => file.clone(),
            (None, _) => String::new(),
        }
    }

    /// The object, where the title does not name it already.
    fn object(&self) -> &str {
        match (&self.function, &self.object) {
            (Some(_), Some(object)) => object,
            _ => "",
        }
    }
}

impl Stack {
    pub fn new(stack: &NamedStack, held_at: u64) -> Stack {
        Stack {
            frames: stack.frames.iter().map(Frame::new).collect(),
            complete: stack.complete,
            held_at,
        }
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = || self.frames.iter().take(MOST_SHOWN);
        let widest = |width: &dyn Fn(&Frame) -> usize| {
            let widths = shown().map(width).filter(|&width| width <= WIDEST);
            widths.max().unwrap_or(0)
        };
        let title_width = widest(&|frame| frame.title().chars().count());
        let object_width = widest(&|frame| frame.object().chars().count());
        for (number, frame) in shown().enumerate() {
            // What has no frame of its own does not hold a task.
            let holds = frame.at == self.held_at && !frame.inlined;
            let line = format!(
                "    {} {:>3}  {:title_width$}  {:object_width$}  {}",
                if holds { "=>" } else { "  " },
                format!("#{number}"),
                frame.title(),
                frame.object(),
                frame.place(),
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        let left_out = self.frames.len().saturating_sub(MOST_SHOWN);
        if left_out > 0 {
            let frames = counted(left_out, "more frame is", "more frames are");
            writeln!(f, "            {frames} left out")?;
        }
        if !self.complete && !self.frames.is_empty() {
            writeln!(f, "            who called that is not known")?;
        }
        Ok(())
    }
}

/// Stacks as text, each once: hundreds of workers may wait at the same place.
#[derive(Debug, Default)]
pub struct Stacks {
    shown: HashMap<String, i32>,
}

impl Stacks {
    /// The stack of a task, or whose it is as well.
    pub fn show(&mut self, f: &mut fmt::Formatter<'_>, stack: &Stack, tid: i32) -> fmt::Result {
        match self.shown.entry(stack.to_string()) {
            Entry::Occupied(same) if !same.key().is_empty() => {
                writeln!(f, "        the stack is that of task {}", same.get())
            }
            Entry::Occupied(_) => Ok(()),
            Entry::Vacant(new) => {
                write!(f, "{}", new.key())?;
                new.insert(tid);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: Option<&str>, offset: Option<u64>, place: Option<u64>) -> NamedFrame {
        NamedFrame {
            address: 0x5000 + offset.unwrap_or(0),
            function: function.map(str::to_owned),
            offset,
            object: Some("server".to_owned()),
            file: place.map(|_| "/src/server.c".to_owned()),
            line: place,
            inlined: offset.is_none(),
        }
    }

    #[test]
    fn text_is_aligned_and_marks_what_holds() {
        let frames = vec![
            frame(Some("read"), Some(0x4d), None),
            frame(Some("wait"), None, Some(7)),
            frame(Some("job"), Some(0x12), Some(31)),
            frame(None, Some(0x1139), None),
        ];
        let stack = NamedStack {
            frames,
            complete: false,
        };
        let text = Stack::new(&stack, 0x5012).to_string();
        assert_eq!(
            text,
            "        #0  read+0x4d       server\n\
             \x20       #1  wait (inlined)  server  /src/server.c:7\n\
             \x20   =>  #2  job+0x12        server  /src/server.c:31\n\
             \x20       #3  server+0x1139\n\
             \x20           who called that is not known\n"
        );
    }

    #[test]
    fn a_stack_that_two_tasks_have_is_shown_once() {
        struct Shown(Vec<NamedStack>);
        impl fmt::Display for Shown {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut stacks = Stacks::default();
                let mut tasks = self.0.iter().zip(1..);
                tasks.try_for_each(|(stack, tid)| stacks.show(f, &Stack::new(stack, 0), tid))
            }
        }
        let of = |name: &str| NamedStack {
            frames: vec![frame(Some(name), Some(0x12), None)],
            complete: true,
        };
        let none = NamedStack::default;
        let text = Shown(vec![of("job"), none(), of("tick"), of("job"), none()]).to_string();
        assert_eq!(
            text,
            "        #0  job+0x12  server\n\
             \x20       #0  tick+0x12  server\n\
             \x20       the stack is that of task 1\n"
        );
    }

    #[test]
    fn a_deep_stack_is_cut() {
        let frames = (0..100).map(|_| frame(Some("f"), Some(1), None)).collect();
        let stack = NamedStack {
            frames,
            complete: true,
        };
        let text = Stack::new(&stack, 0).to_string();
        assert_eq!(text.lines().count(), 33);
        assert!(text.ends_with("            68 more frames are left out\n"));
    }
}
