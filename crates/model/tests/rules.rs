//! The rules, without a process: what the stack of patches makes of universes, and what a transition may do.

use livegraft_model::{
    Livepatch, Look, Operation, PatchState, Refusal, Slot, Standing, Universe, UniverseId, Verdict,
    Version,
};

const FOO: Slot = Slot(0);
const BAR: Slot = Slot(1);

fn loaded(livepatch: &mut Livepatch, name: &str, slots: &[Slot]) -> livegraft_model::PatchId {
    let id = livepatch.add(name, slots.to_vec());
    livepatch.begin_load(id).expect("nothing is open");
    livepatch.complete().expect("one is open");
    id
}

fn unloaded(livepatch: &mut Livepatch, name: &str) {
    livepatch.begin_unload(name).expect("it is loaded");
    livepatch.complete().expect("one is open");
}

fn runs(livepatch: &Livepatch, slot: Slot) -> Version {
    livepatch
        .universe(livepatch.settled())
        .expect("it is live")
        .version(slot)
}

#[test]
fn load_then_unload_is_universe_zero_again() {
    let mut livepatch = Livepatch::default();
    let id = loaded(&mut livepatch, "fix", &[FOO]);
    assert_eq!(runs(&livepatch, FOO), Version::Patched(id));
    assert_eq!(
        livepatch.redirected().into_iter().collect::<Vec<_>>(),
        [FOO]
    );
    unloaded(&mut livepatch, "fix");
    assert_eq!(livepatch.settled(), UniverseId::ORIGINAL);
    assert!(livepatch.redirected().is_empty());
    assert_eq!(
        livepatch.patch(id).map(|patch| patch.state),
        Some(PatchState::Disabled)
    );
}

#[test]
fn the_newest_wins_and_any_may_leave() {
    let mut livepatch = Livepatch::default();
    let one = loaded(&mut livepatch, "one", &[FOO]);
    loaded(&mut livepatch, "two", &[FOO]);
    let three = loaded(&mut livepatch, "three", &[FOO]);
    unloaded(&mut livepatch, "two");
    assert_eq!(runs(&livepatch, FOO), Version::Patched(three));
    unloaded(&mut livepatch, "three");
    assert_eq!(runs(&livepatch, FOO), Version::Patched(one));
    unloaded(&mut livepatch, "one");
    assert_eq!(runs(&livepatch, FOO), Version::Original);
}

#[test]
fn a_patch_loaded_again_becomes_the_newest() {
    let mut livepatch = Livepatch::default();
    let one = loaded(&mut livepatch, "one", &[FOO]);
    let two = loaded(&mut livepatch, "two", &[FOO]);
    unloaded(&mut livepatch, "one");
    assert_eq!(runs(&livepatch, FOO), Version::Patched(two));
    livepatch.begin_load(one).expect("nothing is open");
    livepatch.complete().expect("one is open");
    assert_eq!(runs(&livepatch, FOO), Version::Patched(one));
}

#[test]
fn one_transition_at_a_time() {
    let mut livepatch = Livepatch::default();
    loaded(&mut livepatch, "one", &[FOO]);
    let two = livepatch.add("two", vec![BAR]);
    livepatch.begin_load(two).expect("nothing is open");
    let open = Refusal::TransitionOpen("two".to_owned());
    assert_eq!(livepatch.may_load("three"), Err(open.clone()));
    assert_eq!(livepatch.begin_unload("one").err(), Some(open.clone()));
    assert_eq!(livepatch.begin_load(two).err(), Some(open));
}

#[test]
fn the_same_twice_is_refused() {
    let mut livepatch = Livepatch::default();
    loaded(&mut livepatch, "one", &[FOO]);
    assert_eq!(
        livepatch.may_load("one"),
        Err(Refusal::AlreadyLoaded("one".to_owned()))
    );
    unloaded(&mut livepatch, "one");
    assert_eq!(livepatch.may_load("one"), Ok(()));
    let refused = livepatch.begin_unload("one").err();
    assert_eq!(refused, Some(Refusal::NotLoaded("one".to_owned())));
    assert_eq!(livepatch.reverse().err(), Some(Refusal::NothingOpen));
}

#[test]
fn a_reversed_load_leaves_nothing_and_a_reversed_unload_everything() {
    let mut livepatch = Livepatch::default();
    let id = livepatch.add("fix", vec![FOO]);
    livepatch.begin_load(id).expect("nothing is open");
    let turned = livepatch.reverse().expect("one is open").clone();
    assert_eq!(
        (turned.heading(), turned.to),
        (Operation::Unload, UniverseId::ORIGINAL)
    );
    // While tasks may still be in the new universe its slots stay redirected.
    assert!(livepatch.redirected().contains(&FOO));
    livepatch.complete().expect("one is open");
    assert!(livepatch.redirected().is_empty());
    assert_eq!(
        livepatch.patch(id).map(|patch| patch.state),
        Some(PatchState::Disabled)
    );

    livepatch.begin_load(id).expect("nothing is open");
    livepatch.complete().expect("one is open");
    livepatch.begin_unload("fix").expect("it is loaded");
    livepatch.reverse().expect("one is open");
    livepatch.complete().expect("one is open");
    assert_eq!(
        livepatch.patch(id).map(|patch| patch.state),
        Some(PatchState::Enabled)
    );
    assert_eq!(runs(&livepatch, FOO), Version::Patched(id));
}

#[test]
fn reversing_twice_is_as_never() {
    let mut livepatch = Livepatch::default();
    let id = livepatch.add("fix", vec![FOO]);
    let before = livepatch.begin_load(id).expect("nothing is open").clone();
    livepatch.reverse().expect("one is open");
    assert_eq!(*livepatch.reverse().expect("one is open"), before);
}

#[test]
fn every_version_that_differs_is_replaced_whatever_its_age() {
    let mut livepatch = Livepatch::default();
    let one = loaded(&mut livepatch, "one", &[FOO, BAR]);
    let two = livepatch.add("two", vec![FOO]);
    let open = livepatch.begin_load(two).expect("nothing is open").clone();
    // BAR stays as patch one has it: a task inside it may move.
    assert_eq!(
        livepatch.replaced(open.from, open.to),
        [(FOO, Version::Patched(one))]
    );
    // A straggler in the original universe leaves two originals behind.
    assert_eq!(
        livepatch.replaced(UniverseId::ORIGINAL, open.to),
        [(FOO, Version::Original), (BAR, Version::Original)]
    );
    // What tasks of any live universe may return to must stay.
    for version in [
        (FOO, Version::Original),
        (FOO, Version::Patched(one)),
        (FOO, Version::Patched(two)),
    ] {
        assert!(livepatch.reachable().contains(&version), "{version:?}");
    }
}

#[test]
fn who_may_move() {
    let (from, to) = (UniverseId(1), UniverseId(2));
    let clean = Look::default();
    let holds = Look {
        holds_replaced: true,
        ..clean
    };
    let switching = Look {
        mid_switch: true,
        ..clean
    };
    let waiting = |to| Standing::Waiting { from, to };
    assert_eq!(
        Verdict::of(Standing::In(to), holds, to, false),
        Verdict::Settled
    );
    assert_eq!(
        Verdict::of(Standing::In(from), clean, to, false),
        Verdict::Move
    );
    assert_eq!(
        Verdict::of(Standing::In(from), holds, to, false),
        Verdict::Arm
    );
    assert_eq!(Verdict::of(waiting(to), holds, to, false), Verdict::Wait);
    assert_eq!(Verdict::of(waiting(to), clean, to, false), Verdict::Move);
    // Told something else before a reverse.
    assert_eq!(Verdict::of(waiting(from), holds, to, false), Verdict::Arm);
    // It may have decided already: hands off.
    assert_eq!(
        Verdict::of(waiting(to), switching, to, false),
        Verdict::Again
    );
    // A private table is not the universe itself, even if it runs the same versions.
    assert_eq!(Verdict::of(waiting(to), clean, from, false), Verdict::Move);
}

#[test]
fn universes_with_equal_contents_are_one() {
    let mut livepatch = Livepatch::default();
    let one = loaded(&mut livepatch, "one", &[FOO]);
    let two = livepatch.add("two", vec![FOO]);
    livepatch.begin_load(two).expect("nothing is open");
    livepatch.reverse().expect("one is open");
    livepatch.complete().expect("one is open");
    assert_eq!(runs(&livepatch, FOO), Version::Patched(one));
    assert_eq!(livepatch.universes().count(), 2);
    assert_eq!(
        Universe::of_stack([(one, [FOO].as_slice())])
            .patched()
            .count(),
        1
    );
}

/// Another patch may have had the name before: what is loaded now counts.
#[test]
fn a_name_used_before_still_refuses_the_second_load() {
    let mut livepatch = Livepatch::default();
    loaded(&mut livepatch, "fix", &[FOO]);
    unloaded(&mut livepatch, "fix");
    let second = loaded(&mut livepatch, "fix", &[FOO]);
    assert_eq!(
        livepatch.patch_named("fix").map(|patch| patch.id),
        Some(second)
    );
    let refused = Err(Refusal::AlreadyLoaded("fix".to_owned()));
    assert_eq!(livepatch.may_load("fix"), refused);
}

/// What still names a universe that is gone must not name another.
#[test]
fn the_number_of_a_universe_is_not_used_again() {
    let mut livepatch = Livepatch::default();
    loaded(&mut livepatch, "one", &[FOO]);
    let first = livepatch.settled();
    unloaded(&mut livepatch, "one");
    loaded(&mut livepatch, "two", &[BAR]);
    assert_ne!(livepatch.settled(), first);
}

/// Forced, nobody is busy; but who is in the middle of its own switch is let finish that.
#[test]
fn force_moves_whoever_is_left_and_keeps_the_patch_for_ever() {
    let mut livepatch = Livepatch::default();
    assert_eq!(livepatch.force().err(), Some(Refusal::NothingOpen));
    let older = loaded(&mut livepatch, "older", &[FOO]);
    let id = livepatch.add("fix", vec![FOO, BAR]);
    let other = livepatch.add("other", vec![BAR]);
    livepatch.begin_load(id).expect("nothing is open");
    let open = livepatch.force().expect("one is open").clone();
    assert!(open.forced);
    let holds = Look {
        holds_replaced: true,
        mid_switch: false,
    };
    let switching = Look {
        mid_switch: true,
        ..holds
    };
    let standing = Standing::In(open.from);
    assert_eq!(Verdict::of(standing, holds, open.to, true), Verdict::Move);
    assert_eq!(
        Verdict::of(standing, switching, open.to, true),
        Verdict::Again
    );
    livepatch.complete().expect("one is open");
    unloaded(&mut livepatch, "fix");
    let forced = |id| livepatch.patch(id).map(|patch| patch.forced);
    assert_eq!(
        (forced(id), forced(older), forced(other)),
        (Some(true), Some(true), Some(false))
    );
}

/// Where stacks are handed from task to task all move at once, or nobody does.
#[test]
fn all_or_nobody() {
    let (old, new) = (UniverseId(0), UniverseId(1));
    let all = |tasks: &[(Standing, Look)], suspended, forced| {
        Verdict::of_all(tasks, suspended, new, forced)
    };
    let clean = (Standing::In(old), Look::default());
    let busy = Look {
        holds_replaced: true,
        mid_switch: false,
    };
    let (busy, there) = ((Standing::In(old), busy), (Standing::In(new), busy));
    assert_eq!(all(&[], false, false), Verdict::Settled);
    assert_eq!(all(&[there, there], true, false), Verdict::Settled);
    assert_eq!(all(&[clean, there], false, false), Verdict::Move);
    assert_eq!(all(&[clean, busy], false, false), Verdict::Again);
    assert_eq!(all(&[clean, clean], true, false), Verdict::Again);
    assert_eq!(all(&[clean, busy], true, true), Verdict::Move);
    let switching = Look {
        holds_replaced: false,
        mid_switch: true,
    };
    let switching = (Standing::In(old), switching);
    assert_eq!(all(&[clean, switching], false, true), Verdict::Again);
}

#[test]
fn only_what_is_disabled_and_was_never_forced_may_be_freed() {
    let mut livepatch = Livepatch::default();
    let not_loaded = |name: &str| Err(Refusal::NotLoaded(name.to_owned()));
    assert_eq!(livepatch.may_free(Some("fix")), not_loaded("fix"));
    assert_eq!(livepatch.may_free(None), Ok(vec![]));
    let forced = loaded(&mut livepatch, "forced", &[BAR]);
    livepatch.begin_unload("forced").expect("it is loaded");
    livepatch.force().expect("one is open");
    livepatch.complete().expect("one is open");
    let old = loaded(&mut livepatch, "fix", &[FOO]);
    let still = Err(Refusal::StillLoaded("fix".to_owned()));
    assert_eq!(livepatch.may_free(Some("fix")), still);
    assert_eq!(livepatch.may_free(None), Ok(vec![]));
    unloaded(&mut livepatch, "fix");
    // Another file of the same name.
    let new = loaded(&mut livepatch, "fix", &[FOO]);
    assert_eq!(livepatch.may_free(Some("fix")), Ok(vec![old]));
    let refused = Err(Refusal::Forced("forced".to_owned()));
    assert_eq!(livepatch.may_free(Some("forced")), refused);
    livepatch.begin_unload("fix").expect("it is loaded");
    let busy = Err(Refusal::TransitionOpen("fix".to_owned()));
    assert_eq!(livepatch.may_free(Some("fix")), busy);
    assert_eq!(livepatch.may_free(None), busy);
    livepatch.forget(new);
    livepatch.complete().expect("one is open");
    assert_eq!(livepatch.may_free(None), Ok(vec![old, new]));
    for id in [old, new, forced] {
        livepatch.forget(id);
    }
    let left: Vec<_> = livepatch.patches().iter().map(|patch| patch.id).collect();
    assert_eq!(left, [forced]);
}
