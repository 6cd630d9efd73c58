//! Libraries that a program opens and closes: what was patched goes, comes back elsewhere, or something else lies there.

use livegraft_scenarios::compile::{compile_patch_of_both, compile_shared, out_dir};
use livegraft_scenarios::inspect::Baseline;
use livegraft_scenarios::refusal::check;
use livegraft_scenarios::{
    Build, Plan, Target, cli, compile_patch_as, compile_target, inspect, note,
};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

const LEAVE: &[&str] = &["--timeout", "300ms", "--on-timeout", "leave"];

/// A program that opens libraries, two libraries of the same shape, a patch for each and one for the program.
struct Libraries {
    target: Target,
    files: [PathBuf; 2],
    patches: [PathBuf; 2],
    own: PathBuf,
    /// For library 2 and the program's hold().
    held: PathBuf,
}

impl Libraries {
    fn start() -> Self {
        Self::start_with(|file| file)
    }

    /// The same; the program gets the libraries from where `put` puts them.
    fn start_with(put: impl Fn(PathBuf) -> PathBuf) -> Self {
        let plan = Plan::read("libs");
        let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
        let library = |number: usize| {
            // `lea CONSTANT(%rdi),%eax`: bytes 1 to 4 make the same displacement in both, to something free.
            let constant = format!("-DCONSTANT=0x0{number}f00001");
            let build = Build::new("gcc -O2 pic").flag(&constant);
            let name = format!("lib{number}.so");
            let file = compile_shared(&plan, &build, "lib.c", &name);
            let of_it = build.flag(&format!("-DLIBRARY=\"{name}\""));
            let klp = compile_patch_as(&plan, &of_it, &file, &format!("fix{number}"));
            let of_both = of_it.flag("-DHOLD");
            let held = compile_patch_of_both(&plan, &of_both, [&file, &exe], "held");
            (file, klp, held)
        };
        let ((file1, klp1, _), (file2, klp2, held)) = (library(1), library(2));
        let (file1, file2) = (put(file1), put(file2));
        let paths = [&file1, &file2].map(|file| file.to_str().expect("a path in UTF-8"));
        let target = Target::start(&plan, &exe, &paths);
        Self {
            own: compile_patch_as(&plan, &Build::new("gcc -O2 pic"), &exe, "own"),
            target,
            files: [file1, file2],
            patches: [klp1, klp2],
            held,
        }
    }

    /// Opens library 1 or 2; gives its address, and what its text is.
    fn open(&mut self, number: usize) -> (String, Baseline) {
        let at = self.target.ask(&format!("open {number}"));
        let text = Baseline::of_file(self.target.pid(), &self.files[number - 1]);
        (at, text)
    }

    fn close(&mut self, number: usize) {
        assert_eq!(self.target.ask(&format!("close {number}")), "ok");
    }

    #[track_caller]
    fn calls(&mut self, number: usize, version: &str) {
        assert_eq!(self.target.ask(&format!("call {number}")), version);
    }

    #[track_caller]
    fn load(&mut self, number: usize, entry: &str) {
        // Where the pun of library 2 would lead may be taken by what is left for library 1: any method will do.
        let forced = ["--entry", entry];
        let more = if number == 1 { &forced[..] } else { &[] };
        let load = self.target.load(&self.patches[number - 1], more);
        load.result(0, "loaded");
        self.calls(number, "new");
    }

    #[track_caller]
    fn unload(&mut self, number: usize) {
        let unload = ["unload", &format!("fix{number}")];
        self.target.livegraft(&unload, &[]).result(0, "unloaded");
    }

    /// No command that is about something else changes a byte of library 2.
    #[track_caller]
    fn others_leave_alone(&mut self, library_2: &Baseline) {
        let unchanged = |this: &mut Self, command: &str| {
            let difference = library_2.text_difference();
            assert_eq!(difference, None, "library 2 after {command}");
            this.calls(2, "old");
        };
        unchanged(self, "it was opened");
        cli::list(self.target.pid());
        unchanged(self, "list");
        self.target.livegraft(&["status"], &[]).done();
        unchanged(self, "status");
        let resumed = self.target.livegraft(&["resume"], &[]).done();
        assert_eq!(resumed.text("result"), "nothing-open", "{resumed}");
        unchanged(self, "resume");
        for _ in 0..2 {
            self.target.load(&self.own, &[]).result(0, "loaded");
            self.target.expect("new");
            unchanged(self, "the load of another patch");
            let unload = self.target.livegraft(&["unload", "own"], &[]);
            unload.result(0, "unloaded");
            self.target.expect("old");
            unchanged(self, "the unload of another patch");
        }
    }
}

#[test]
fn library_that_is_closed_and_opened_again() {
    for entry in ["pun", "swap"] {
        let mut all = Libraries::start();
        let mut places = Vec::new();
        // The same place twice; then library 2 is in it.
        for round in 0..3 {
            if round == 2 {
                all.open(2);
            }
            let (place, text) = all.open(1);
            places.push(place);
            all.calls(1, "old");
            all.load(1, entry);
            all.unload(1);
            all.calls(1, "old");
            assert_eq!(text.text_difference(), None, "round {round}");
            all.close(1);
        }
        note(&format!("{entry}: library 1 lay at {places:?}"));
        assert!(places[0] == places[1] && places[0] != places[2]);
        all.calls(2, "old");
        all.target.finish();
    }
}

#[test]
fn library_that_is_closed_while_it_is_patched() {
    for entry in ["pun", "swap"] {
        let mut all = Libraries::start();
        all.open(1);
        all.load(1, entry);
        all.close(1);
        // Nothing is in its place.
        cli::list(all.target.pid());
        all.target.livegraft(&["status"], &[]).done();
        all.target.livegraft(&["resume"], &[]).done();
        all.target.load(&all.own, &[]).result(0, "loaded");
        all.target.expect("new");
        all.unload(1);
        all.target.expect("new");
        let unload = all.target.livegraft(&["unload", "own"], &[]);
        unload.result(0, "unloaded");
        all.target.expect("old");
        all.open(1);
        all.calls(1, "old");
        all.load(1, entry);
        all.unload(1);
        all.calls(1, "old");
        all.target.finish();
    }
}

/// The bytes of the library, but not the library: code that the program made itself, say.
#[test]
fn anonymous_code_in_the_place_of_a_loaded_patch() {
    for entry in ["pun", "swap"] {
        let mut all = Libraries::start();
        all.open(1);
        let pid = all.target.pid();
        let place = all.target.ask("copy 1");
        let place = u64::from_str_radix(place.trim_start_matches("0x"), 16);
        let place = place.expect("an address");
        let code = inspect::read(pid, place, 4096);
        all.load(1, entry);
        all.close(1);
        assert_eq!(all.target.ask("paste 1"), "ok");
        let unchanged = |command: &str| {
            let same = inspect::read(pid, place, 4096) == code;
            assert!(same, "somebody else's code was changed by {command}");
        };
        unchanged("nobody");
        cli::list(pid);
        all.target.livegraft(&["status"], &[]).done();
        unchanged("list or status");
        all.target.livegraft(&["resume"], &[]).done();
        unchanged("resume");
        all.target.load(&all.own, &[]).result(0, "loaded");
        unchanged("the load of another patch");
        all.unload(1);
        unchanged("unload");
        let unload = all.target.livegraft(&["unload", "own"], &[]);
        unload.result(0, "unloaded");
        unchanged("the unload of another patch");
        all.target.expect("old");
        all.target.finish();
    }
}

#[test]
fn another_library_in_the_place_of_an_unloaded_patch() {
    for entry in ["pun", "swap"] {
        let mut all = Libraries::start();
        let (place, _) = all.open(1);
        all.load(1, entry);
        all.unload(1);
        all.close(1);
        let (place_2, text_2) = all.open(2);
        assert_eq!(place, place_2, "the scenario needs the same place");
        all.others_leave_alone(&text_2);
        for _ in 0..2 {
            all.load(2, entry);
            all.unload(2);
            all.calls(2, "old");
            assert_eq!(text_2.text_difference(), None);
        }
        all.target.finish();
    }
}

/// What was prepared for the function of library 1 is not good for that of library 2 at the same address: a task in its
/// old universe would run the first instruction of the wrong one.
#[test]
fn original_of_another_library_at_the_same_address() {
    for entry in ["pun", "swap"] {
        let mut all = Libraries::start();
        let (place, _) = all.open(1);
        all.load(1, entry);
        all.unload(1);
        all.close(1);
        let (place_2, text_2) = all.open(2);
        assert_eq!(place, place_2, "the scenario needs the same place");
        for _ in 0..2 {
            let left = all.target.load(&all.held, LEAVE);
            left.result(4, "timed-out");
            all.calls(2, "new");
            assert_eq!(all.target.ask("held 2"), "old");
            assert_eq!(all.target.ask("release"), "new");
            assert_eq!(all.target.ask("held 2"), "new");
            all.target.livegraft(&["resume"], &[]).done();
            let left = all.target.livegraft(&["unload", "held"], LEAVE);
            left.result(4, "timed-out");
            all.calls(2, "old");
            assert_eq!(all.target.ask("held 2"), "new");
            assert_eq!(all.target.ask("release"), "old");
            all.target.livegraft(&["resume"], &[]).done();
            all.calls(2, "old");
            assert_eq!(text_2.text_difference(), None);
        }
        all.target.finish();
    }
}

#[test]
fn another_library_in_the_place_of_a_loaded_patch() {
    for entry in ["pun", "swap"] {
        let mut all = Libraries::start();
        let (place, _) = all.open(1);
        all.load(1, entry);
        all.close(1);
        let (place_2, text_2) = all.open(2);
        assert_eq!(place, place_2, "the scenario needs the same place");
        all.others_leave_alone(&text_2);
        // The patch for this one may have to wait until the other one is gone.
        let early = all.target.load(&all.patches[1], &["--entry", entry]);
        if early.code == 0 {
            all.calls(2, "new");
            all.unload(2);
        } else {
            check(&early, "lib");
        }
        all.others_leave_alone(&text_2);
        all.unload(1);
        all.others_leave_alone(&text_2);
        all.load(2, entry);
        all.unload(2);
        // Library 1 is somewhere else now.
        let (_, text_1) = all.open(1);
        all.calls(1, "old");
        all.load(1, entry);
        all.calls(2, "old");
        all.unload(1);
        all.calls(1, "old");
        assert_eq!(text_1.text_difference(), None);
        assert_eq!(text_2.text_difference(), None);
        all.target.finish();
    }
}

/// A directory of its own for a library, as an upgrade finds it.
fn installed(file: PathBuf) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = out_dir().join(format!("installed-{number}"));
    std::fs::create_dir_all(&dir).expect("it can be made");
    let to = dir.join(file.file_name().expect("a file"));
    std::fs::copy(file, &to).expect("it can be copied");
    to
}

/// An upgrade has removed a library's file, or put another one in its place, while the program runs.
#[test]
fn library_whose_file_is_another_by_now() {
    for (replace, entry) in [
        (None, "pun"),
        (None, "swap"),
        (Some(1), "swap"),
        (Some(1), "pun"),
        (Some(0), "pun"),
    ] {
        let mut all = Libraries::start_with(installed);
        let (_, text) = all.open(1);
        all.calls(1, "old");
        let file = &all.files[0];
        let dir = file.parent().expect("it lies in a directory");
        match replace {
            // By another file as dpkg does it, or by one that is no library at all.
            Some(number) => {
                let other = ["/bin/sh", all.files[1].to_str().expect("UTF-8")][number];
                let new = dir.join("new");
                std::fs::copy(other, &new).expect("it can be copied");
                std::fs::rename(&new, file).expect("it can be replaced");
            }
            None => std::fs::remove_dir_all(dir).expect("it is there"),
        }
        for _ in 0..2 {
            all.load(1, entry);
            let listed = cli::list(all.target.pid());
            assert_eq!(listed["entries"][0]["gone"], false, "{listed}");
            assert_eq!(listed["entries"][0]["intact"], true, "{listed}");
            all.unload(1);
            all.calls(1, "old");
            assert_eq!(text.text_difference(), None);
        }
        all.target.finish();
    }
}

/// A patch that was packed against the file that lies there now is not one for what runs.
#[test]
fn patch_for_the_library_that_an_upgrade_has_put_there() {
    let mut all = Libraries::start_with(installed);
    all.open(1);
    let plan = Plan::read("libs");
    let build = Build::new("gcc -O2 pic").flag("-DCONSTANT=0x04f00001");
    let upgraded = compile_shared(&plan, &build, "lib.c", "lib1.so");
    std::fs::rename(&upgraded, &all.files[0]).expect("it can be replaced");
    let of_it = build.flag("-DLIBRARY=\"lib1.so\"");
    let klp = compile_patch_as(&plan, &of_it, &all.files[0], "upgraded");
    check(&all.target.load(&klp, &[]), "lib1.so build-id");
    all.calls(1, "old");
    all.target.assert_undisturbed();
    // Closed and opened again it is the other one, and the patch for the first one is for nothing.
    all.close(1);
    all.open(1);
    check(&all.target.load(&all.patches[0], &[]), "lib1.so build-id");
    all.calls(1, "old");
    all.target.load(&klp, &[]).result(0, "loaded");
    all.calls(1, "new");
    let unload = all.target.livegraft(&["unload", "upgraded"], &[]);
    unload.result(0, "unloaded");
    all.calls(1, "old");
    all.target.finish();
}
