//! Who may ask for what: a child never has more rights than its spawner has (C17).
//!
//! The forkserver keeps the rights that the root had when it started; the spawner may have fewer by
//! now. So each request is held against what the kernel says of the thread that asked (`look`):
//! what that has less than the forkserver is taken from the child (`apply`), and what can't be taken
//! is a refusal before the fork. Which of them it is, is decided here, from values alone.
//!
//! Two things are known by the spawner's own word, as no file of `/proc` tells them: securebits, and
//! whether it has put landlock on itself. A spawner that lies about them has rights that it had given
//! up, but none that its capabilities, ids and filters don't give.

mod apply;
mod keeper;
mod look;

use std::collections::BTreeSet;
use std::fmt;

use nix::errno::Errno;
use nix::unistd::{getppid, getresuid};

pub(crate) use apply::apply;
pub(crate) use keeper::{Keeper, Sender};
use look::{Look, own};

use crate::confine::User;
use crate::sys::rights as sys;

/// What of a spawner's rights could not be carried over to a child. Nothing was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Right {
    /// Its ids when it asked are not the ones that it has now.
    Changed = 1,
    /// Its user, group or supplementary groups: the forkserver can't take them.
    User,
    /// Its capability bounding set, or its ambient set: the forkserver can't take as much away.
    Capabilities,
    /// Its securebits.
    Securebits,
    /// Its filter of system calls.
    Seccomp,
    /// Its view of the file system.
    Landlock,
    /// Its user namespace.
    UserNamespace,
    /// Its root directory, or its mount namespace.
    Root,
    /// Its network or IPC namespace.
    Namespace,
    /// Different real and effective ids, over an exec of this program.
    Exec,
    /// A child of another user, whom the forkserver could not end.
    Reach,
    /// A cgroup that the spawner itself could not make there.
    Cgroup,
    /// `/proc` doesn't show them to the forkserver.
    Hidden,
    /// To become the user, the group or the supplementary groups that were asked for.
    Become,
}

impl Right {
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        use Right::{
            Become, Capabilities, Cgroup, Changed, Exec, Hidden, Landlock, Namespace, Reach, Root,
            Seccomp, Securebits, User, UserNamespace,
        };
        [
            Changed,
            User,
            Capabilities,
            Securebits,
            Seccomp,
            Landlock,
            UserNamespace,
            Root,
            Namespace,
            Exec,
            Reach,
            Cgroup,
            Hidden,
            Become,
        ]
        .into_iter()
        .find(|right| *right as u8 == number)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Changed => "the user of this process has changed since it asked: ask again",
            Self::User => {
                "this process has ids that its forkserver can't take: open the runtime after the \
                 change of user"
            }
            Self::Capabilities => {
                "this process has given up capabilities that its forkserver can't give up, for want \
                 of CAP_SETPCAP: open the runtime after that"
            }
            Self::Securebits => {
                "this process has securebits that its forkserver can't set, for want of \
                 CAP_SETPCAP: open the runtime after they were set"
            }
            Self::Seccomp => {
                "this thread has a filter of system calls that its forkserver has not, and a filter \
                 can't be handed on: open the runtime after it was installed"
            }
            Self::Landlock => {
                "this thread has put landlock on itself, its forkserver has not, and it can't be \
                 handed on: open the runtime after that"
            }
            Self::UserNamespace => {
                "this thread is in another user namespace than its forkserver: open the runtime in \
                 there"
            }
            Self::Root => {
                "this thread has another root directory or mount namespace than its forkserver: \
                 open the runtime after the change"
            }
            Self::Namespace => {
                "this thread is in another network or IPC namespace than its forkserver: open the \
                 runtime in there"
            }
            Self::Exec => {
                "the real and the effective user or group of this process differ, and an exec of \
                 this program would not be trusted: use the forkserver backend, or make them one"
            }
            Self::Reach => {
                "the forkserver could not end a child of this process's user, for want of CAP_KILL: \
                 open the runtime after the change of user"
            }
            Self::Become => {
                "this process may not become the user or the groups that were asked for, for want of \
                 CAP_SETUID or CAP_SETGID"
            }
            Self::Cgroup => "this process may not make a cgroup there itself",
            Self::Hidden => {
                "the forkserver can't read this process's rights in /proc: mount it without hidepid"
            }
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// What a spawner says of the thread that asks, when it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Asker {
    pub(crate) securebits: u32,
    pub(crate) dumpable: bool,
    pub(crate) sight: Sight,
}

/// Whether the thread that asks may look at the forkserver as a tracer would: landlock forbids it to
/// whoever has put more on itself than the forkserver has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub(crate) enum Sight {
    /// The call can't be had here.
    #[default]
    Unknown,
    Free,
    Denied,
}

impl Asker {
    /// Of the calling thread. `server` is the forkserver, or `None` in a child of it.
    pub(crate) fn now(server: Option<i32>) -> Self {
        let server = server.unwrap_or_else(|| getppid().as_raw());
        Self {
            securebits: sys::securebits().unwrap_or(0),
            dumpable: sys::is_dumpable(),
            sight: match sys::may_look_at(server) {
                Ok(()) => Sight::Free,
                Err(Errno::EPERM | Errno::EACCES) => Sight::Denied,
                Err(_) => Sight::Unknown,
            },
        }
    }

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let [s0, s1, s2, s3] = self.securebits.to_le_bytes();
        [s0, s1, s2, s3, u8::from(self.dumpable), self.sight as u8]
    }

    pub(crate) fn decode([s0, s1, s2, s3, dumpable, sight]: [u8; Self::BYTES]) -> Option<Self> {
        let all = [Sight::Unknown, Sight::Free, Sight::Denied];
        Some(Self {
            securebits: u32::from_le_bytes([s0, s1, s2, s3]),
            dumpable: dumpable != 0,
            sight: all.into_iter().find(|known| *known as u8 == sight)?,
        })
    }

    pub(crate) const BYTES: usize = 6;
}

/// The user that a message is to be sent as, if the kernel's own choice, the real one, doesn't say
/// all: a process that may become root again shows that it may. Its answer is what the kernel
/// vouches for when the message is sent, and not when it is read (see [`judge`]).
pub(crate) fn sent_as() -> Option<u32> {
    let ids = getresuid().ok()?;
    let may_be_root = ids.effective.is_root() || ids.saved.is_root();
    (may_be_root && !ids.real.is_root()).then_some(0)
}

/// What the kernel says of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rights {
    /// Real, effective, saved, and the file system's.
    pub(crate) uids: [u32; 4],
    pub(crate) gids: [u32; 4],
    pub(crate) groups: Vec<u32>,
    pub(crate) caps: Caps,
    pub(crate) no_new_privs: bool,
    /// 2 if there is any filter; how many, since Linux 5.9.
    pub(crate) seccomp: u8,
    pub(crate) filters: Option<usize>,
}

/// Capabilities, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Caps {
    pub(crate) inheritable: u64,
    pub(crate) permitted: u64,
    pub(crate) effective: u64,
    pub(crate) bounding: u64,
    pub(crate) ambient: u64,
}

/// What a child is to have that the forkserver has otherwise. Nothing, as a rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    pub(crate) ids: Option<Ids>,
    pub(crate) no_new_privs: bool,
    pub(crate) dumpable: Option<bool>,
}

/// Who a child is to be, and with which capabilities.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ids {
    pub(crate) uids: [u32; 4],
    pub(crate) gids: [u32; 4],
    /// `None`: the forkserver's own.
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) caps: Caps,
    /// What is taken from the bounding set.
    pub(crate) dropped: u64,
    pub(crate) securebits: u32,
}

impl Plan {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The forkserver itself.
#[derive(Debug, Default)]
pub(crate) struct Base {
    pub(crate) rights: Rights,
    pub(crate) securebits: u32,
    pub(crate) dumpable: bool,
    /// The root was once seen to have sight of it: that it has none later means something.
    pub(crate) was_seen: bool,
}

/// One request, before it is judged.
#[derive(Debug)]
pub(crate) struct Case<'a> {
    /// The real user and group of who sent it, at that moment, by the kernel; or a user that it
    /// could have become then.
    pub(crate) sent_as: (u32, u32),
    pub(crate) asker: Asker,
    /// What the kernel says now.
    pub(crate) now: &'a Rights,
    /// Whether it was seen to live in the forkserver's user namespace, where its capabilities mean
    /// what the forkserver's do.
    pub(crate) is_at_home: bool,
    /// How many filters, and whether landlock, it was born with by the forkserver itself.
    pub(crate) filters: usize,
    pub(crate) has_landlock: bool,
    /// It becomes this program afresh.
    pub(crate) image: bool,
    /// The file of this program gives rights to whoever executes it.
    pub(crate) raises: bool,
}

/// What a child gets less than the forkserver has, or which right can't be carried over.
///
/// That the process is the sender's says the kernel with each message. But between sending and here
/// it may have become a set-user-id program, and what that has is not what the sender had. So all of
/// its user ids must be the one that the message was sent with, or that was root.
pub(crate) fn judge(base: &Base, case: &Case<'_>) -> Result<Plan, Right> {
    let (now, own) = (case.now, &base.rights);
    let (uid, gid) = case.sent_as;
    let is_same = now.uids.iter().all(|id| *id == uid) && now.gids.iter().all(|id| *id == gid);
    if uid != ROOT && !is_same {
        return Err(Right::Changed);
    }
    let filters = own.filters.map(|filters| filters + case.filters);
    let more = match (now.filters, filters) {
        (Some(now), Some(known)) => now > known,
        (_, _) => now.seccomp > own.seccomp && case.filters == 0,
    };
    if more {
        return Err(Right::Seccomp);
    }
    // Without the same ids and all of its capabilities nobody has sight of the forkserver.
    let could_see = now.uids == own.uids
        && now.gids == own.gids
        && own.caps.permitted & !now.caps.permitted == 0;
    let is_blind = case.asker.sight == Sight::Denied && base.was_seen && could_see;
    if is_blind && !case.has_landlock {
        return Err(Right::Landlock);
    }
    let plan = plan(base, case)?;
    let [real, effective, ..] = now.uids;
    let [real_group, effective_group, ..] = now.gids;
    if case.image && (real != effective || real_group != effective_group) {
        return Err(Right::Exec);
    }
    if case.image && case.raises && plan.ids.is_some() {
        // Else the exec would give back what was given up.
        return Ok(Plan { no_new_privs: !base.rights.no_new_privs, ..plan });
    }
    Ok(plan)
}

fn plan(base: &Base, case: &Case<'_>) -> Result<Plan, Right> {
    let (now, own, asker) = (case.now, &base.rights, &case.asker);
    let caps = if case.is_at_home { now.caps.within(&own.caps) } else { Caps::default() };
    let caps = Caps { bounding: now.caps.bounding & own.caps.bounding, ..caps };
    // What is set there binds; what the forkserver has set is set anyway.
    let securebits = base.securebits | asker.securebits;
    let is_same = (now.uids, now.gids, &now.groups) == (own.uids, own.gids, &own.groups);
    let ids = if is_same && caps == own.caps && securebits == base.securebits {
        None
    } else {
        let has = |capability: u32| own.caps.permitted & 1 << capability != 0;
        let dropped = own.caps.bounding & !caps.bounding;
        if !has(CAP_SETPCAP) && dropped != 0 {
            return Err(Right::Capabilities);
        }
        if !has(CAP_SETPCAP) && securebits != base.securebits {
            return Err(Right::Securebits);
        }
        let are_there = |ids: &[u32; 4], of: &[u32; 4]| ids.iter().all(|id| of[..3].contains(id));
        let can_take = (has(CAP_SETUID) || are_there(&now.uids, &own.uids))
            && (has(CAP_SETGID) || are_there(&now.gids, &own.gids))
            && (has(CAP_SETGID) || now.groups == own.groups);
        if !can_take {
            return Err(Right::User);
        }
        // See kill(2): the sender's real or effective user is the target's real or saved one.
        let [real, effective, ..] = own.uids;
        let is_reached = [now.uids[0], now.uids[2]].iter().any(|id| [real, effective].contains(id));
        if !is_reached && own.caps.effective & 1 << CAP_KILL == 0 {
            return Err(Right::Reach);
        }
        let groups = (now.groups != own.groups).then(|| now.groups.clone());
        Some(Ids { uids: now.uids, gids: now.gids, groups, caps, dropped, securebits })
    };
    // The kernel takes it away with the rights.
    let dumpable = (ids.is_some() || asker.dumpable != base.dumpable).then_some(asker.dumpable);
    let no_new_privs = now.no_new_privs && !own.no_new_privs;
    Ok(Plan { ids, no_new_privs, dumpable })
}

/// Whether the spawner itself could become that user, and the forkserver could then end it.
pub(crate) fn may_become(
    base: &Base,
    now: &Rights,
    is_at_home: bool,
    user: &User,
) -> Result<(), Right> {
    let own = &base.rights;
    let caps = if is_at_home { now.caps.within(&own.caps) } else { Caps::default() };
    let has = |capability: u32| caps.effective & 1 << capability != 0;
    let [real, ..] = now.uids;
    let groups = user.groups_of(real).is_none_or(|groups| {
        let sorted = |groups: &[u32]| groups.iter().copied().collect::<BTreeSet<_>>();
        has(CAP_SETGID) || sorted(groups) == sorted(&now.groups)
    });
    let gid = user.gid.is_none_or(|gid| has(CAP_SETGID) || now.gids[..3].contains(&gid));
    let uid = user.uid.is_none_or(|uid| has(CAP_SETUID) || now.uids[..3].contains(&uid));
    if !(groups && gid && uid) {
        return Err(Right::Become);
    }
    let is_reached = user.uid.is_none_or(|uid| own.uids[..2].contains(&uid));
    if is_reached || own.caps.effective & 1 << CAP_KILL != 0 { Ok(()) } else { Err(Right::Reach) }
}

impl Caps {
    /// Of these, what the other has too.
    fn within(self, other: &Self) -> Self {
        let permitted = self.permitted & other.permitted;
        // See capset(2): what is inheritable there must have been so, or permitted.
        let inheritable = self.inheritable & (other.inheritable | other.permitted);
        Self {
            inheritable,
            permitted,
            effective: self.effective & permitted,
            bounding: self.bounding & other.bounding,
            ambient: self.ambient & permitted & inheritable,
        }
    }
}

impl Rights {
    /// Whether it may make files in a directory of that owner, group and mode; see inode_permission
    /// in the kernel.
    pub(crate) fn may_make_in(&self, owner: (u32, u32), mode: u32) -> bool {
        let [.., uid] = self.uids;
        let [.., gid] = self.gids;
        let bits = if owner.0 == uid {
            mode >> 6
        } else if owner.1 == gid || self.groups.contains(&owner.1) {
            mode >> 3
        } else {
            mode
        };
        bits & 3 == 3 || self.caps.effective & 1 << CAP_DAC_OVERRIDE != 0
    }

    /// As `/proc/PID/status` says it.
    pub(crate) fn parse(status: &[u8]) -> Option<Self> {
        let mut rights = Self::default();
        let mut is_there = false;
        for line in status.split(|byte| *byte == b'\n') {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (key, value) = (&line[..colon], std::str::from_utf8(&line[colon + 1..]).ok()?);
            let set = || u64::from_str_radix(value.trim(), 16).ok();
            let caps = &mut rights.caps;
            match key {
                b"Uid" => {
                    is_there = true;
                    rights.uids = four(value)?;
                }
                b"Gid" => rights.gids = four(value)?,
                b"Groups" => rights.groups = numbers(value).collect::<Option<_>>()?,
                b"CapInh" => caps.inheritable = set()?,
                b"CapPrm" => caps.permitted = set()?,
                b"CapEff" => caps.effective = set()?,
                b"CapBnd" => caps.bounding = set()?,
                b"CapAmb" => caps.ambient = set()?,
                b"NoNewPrivs" => rights.no_new_privs = value.trim() != "0",
                b"Seccomp" => rights.seccomp = value.trim().parse().ok()?,
                b"Seccomp_filters" => rights.filters = Some(value.trim().parse().ok()?),
                _ => {}
            }
        }
        // Some kernels tell no more; what none of us is told makes no difference.
        is_there.then_some(rights)
    }
}

fn numbers(text: &str) -> impl Iterator<Item = Option<u32>> {
    text.split_ascii_whitespace().map(|number| number.parse().ok())
}

fn four(text: &str) -> Option<[u32; 4]> {
    let all: Vec<u32> = numbers(text).collect::<Option<_>>()?;
    all.try_into().ok()
}

const ROOT: u32 = 0;
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_KILL: u32 = 5;
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SETPCAP: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = (1 << 41) - 1;

    fn root() -> Rights {
        let caps = Caps { permitted: ALL, effective: ALL, bounding: ALL, ..Caps::default() };
        Rights { caps, filters: Some(0), ..Rights::default() }
    }

    fn user(uid: u32) -> Rights {
        let caps = Caps { bounding: ALL, ..Caps::default() };
        Rights { uids: [uid; 4], gids: [uid; 4], caps, filters: Some(0), ..Rights::default() }
    }

    fn base(rights: Rights) -> Base {
        Base { rights, securebits: 0, dumpable: true, was_seen: true }
    }

    fn case(now: &Rights) -> Case<'_> {
        let asker = Asker { dumpable: true, sight: Sight::Free, ..Asker::default() };
        let sent_as = (now.uids[0], now.gids[0]);
        let (is_at_home, has_landlock, image, raises) = (true, false, false, false);
        Case { sent_as, asker, now, is_at_home, filters: 0, has_landlock, image, raises }
    }

    #[test]
    fn nothing_is_planned_for_who_is_like_the_forkserver() {
        for rights in [root(), user(7)] {
            assert_eq!(judge(&base(rights.clone()), &case(&rights)), Ok(Plan::default()));
        }
    }

    /// C17: between a message and its reading a sender may become a set-user-id program.
    #[test]
    fn who_is_more_than_when_it_asked_gets_nothing() {
        let server = base(root());
        let raised = [
            Rights { uids: [7, 0, 0, 0], ..root() },
            Rights { uids: [7, 7, 0, 7], ..root() },
            Rights { uids: [0; 4], ..root() },
            Rights { gids: [7, 42, 42, 42], ..user(7) },
        ];
        for now in raised {
            let case = Case { sent_as: (7, 7), ..case(&now) };
            assert_eq!(judge(&server, &case), Err(Right::Changed), "{now:?}");
        }
        // Who was root is followed wherever it has gone since.
        let now = user(7);
        let case = Case { sent_as: (0, 0), ..case(&now) };
        assert_eq!(judge(&server, &case).unwrap().ids.unwrap().uids, [7; 4]);
    }

    /// C17: the forkserver never gives more than both have.
    #[test]
    fn a_child_has_what_both_have() {
        let mut now = root();
        now.caps = Caps { permitted: 0b0111, effective: 0b0011, ..now.caps };
        let mut own = root();
        own.caps = Caps { permitted: 0b1101 | SETPCAP, effective: 0b1101, ..own.caps };
        now.caps.ambient = 0b0001;
        let caps = judge(&base(own), &case(&now)).unwrap().ids.unwrap().caps;
        assert_eq!((caps.permitted, caps.effective, caps.ambient), (0b0101, 0b0001, 0));
        // Those of a namespace that we may not ask about mean nothing here.
        let case = Case { is_at_home: false, ..case(&now) };
        let caps = judge(&base(root()), &case).unwrap().ids.unwrap().caps;
        assert_eq!(caps, Caps { bounding: ALL, ..Caps::default() });
    }

    #[test]
    fn what_the_forkserver_can_not_take_away_is_refused() {
        let without = |capabilities: u64| {
            let mut own = root();
            own.caps.permitted &= !capabilities;
            own.caps.effective &= !capabilities;
            base(own)
        };
        let (nobody, mut bounded) = (user(7), root());
        bounded.caps.bounding &= !1;
        let lacks = |capabilities, now| judge(&without(capabilities), &case(now)).unwrap_err();
        assert_eq!(lacks(1 << CAP_SETUID, &nobody), Right::User);
        assert_eq!(lacks(1 << CAP_SETGID, &nobody), Right::User);
        assert_eq!(lacks(1 << CAP_KILL, &nobody), Right::Reach);
        assert_eq!(lacks(SETPCAP, &bounded), Right::Capabilities);
        let asker = Asker { securebits: 1, ..Asker::default() };
        let (now, server) = (root(), without(SETPCAP));
        let secure = Case { asker, ..case(&now) };
        assert_eq!(judge(&server, &secure), Err(Right::Securebits));
    }

    /// C17: who may become whom is what the kernel would say to the spawner itself.
    #[test]
    fn nobody_has_a_child_of_a_user_that_it_could_not_become() {
        let of = |uid, gid, groups: Option<&[u32]>| User {
            uid,
            gid,
            groups: groups.map(<[u32]>::to_vec),
        };
        let may = |now: &Rights, user: &User| may_become(&base(root()), now, true, user);
        let all = of(Some(7), Some(8), Some(&[9]));
        assert_eq!(may(&root(), &all), Ok(()));
        assert_eq!(may_become(&base(root()), &root(), false, &all), Err(Right::Become));
        let mut no_groups = root();
        no_groups.caps.effective &= !(1 << CAP_SETGID);
        let uid = of(Some(7), None, None);
        assert_eq!(may(&no_groups, &uid), Ok(()), "it has none that would be left to it");
        no_groups.groups = vec![4];
        for user in [&all, &uid, &of(None, Some(8), None), &of(None, None, Some(&[]))] {
            assert_eq!(may(&no_groups, user), Err(Right::Become), "{user:?}");
        }
        assert_eq!(may(&no_groups, &of(Some(7), Some(0), Some(&[4]))), Ok(()));
        // Without a capability: one of its own three.
        let raised = Rights { uids: [7, 8, 9, 8], ..user(7) };
        for (uid, is_own) in [(7, true), (8, true), (9, true), (0, false)] {
            assert_eq!(may(&raised, &of(Some(uid), None, None)).is_ok(), is_own, "{uid}");
        }
        // The forkserver's rights are the most.
        assert_eq!(may_become(&base(user(7)), &root(), true, &all), Err(Right::Become));
        let mut deaf = root();
        deaf.caps.effective &= !(1 << CAP_KILL);
        assert_eq!(may_become(&base(deaf), &root(), true, &all), Err(Right::Reach));
    }

    /// C17: a set-user-id bit of our own file brings nothing back.
    #[test]
    fn an_exec_of_our_own_file_raises_nobody() {
        let now = user(7);
        let image = Case { image: true, raises: true, ..case(&now) };
        assert!(judge(&base(root()), &image).unwrap().no_new_privs);
        assert!(!judge(&base(root()), &case(&now)).unwrap().no_new_privs);
        assert!(!judge(&base(user(7)), &image).unwrap().no_new_privs, "nothing was given up");
    }

    /// C17: as many filters as it was born with are no reason, nor is landlock that it was born with.
    #[test]
    fn what_hatchery_has_put_on_is_no_reason() {
        let server = base(root());
        let now = Rights { seccomp: 2, filters: Some(2), ..root() };
        let born = |filters| judge(&server, &Case { filters, ..case(&now) });
        assert_eq!((born(1), born(2)), (Err(Right::Seccomp), Ok(Plan::default())));
        let old = Rights { filters: None, ..now.clone() };
        assert_eq!(judge(&server, &case(&old)), Err(Right::Seccomp));
        let now = root();
        let asker = Asker { sight: Sight::Denied, dumpable: true, ..Asker::default() };
        let blind = |has_landlock| judge(&server, &Case { asker, has_landlock, ..case(&now) });
        assert_eq!((blind(false), blind(true)), (Err(Right::Landlock), Ok(Plan::default())));
        // Another module forbids it here from the start, or the ids alone do.
        let never = Base { was_seen: false, ..base(root()) };
        assert!(judge(&never, &Case { asker, ..case(&now) }).is_ok());
        let now = user(7);
        assert!(judge(&server, &Case { asker, ..case(&now) }).is_ok());
    }

    #[test]
    fn a_status_is_read_whatever_its_process_calls_itself() {
        let text = "Name:\ta\\nUid:\t9\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 11 \n\
            CapInh:\t0000000000000001\nCapPrm:\t0000000000000002\nCapEff:\t0000000000000003\n\
            CapBnd:\t0000000000000004\nCapAmb:\t0000000000000005\nNoNewPrivs:\t1\nSeccomp:\t2\n\
            Seccomp_filters:\t3\n";
        let rights = Rights::parse(text.as_bytes()).unwrap();
        assert_eq!((rights.uids, rights.gids), ([1, 2, 3, 4], [5, 6, 7, 8]));
        assert_eq!((&rights.groups[..], rights.filters), (&[10, 11][..], Some(3)));
        assert_eq!((rights.caps.permitted, rights.no_new_privs), (2, true));
        assert_eq!(Rights::parse(&text.as_bytes()[..20]), None);
        let own = std::fs::read("/proc/self/status").unwrap();
        assert!(Rights::parse(&own).is_some());
    }

    #[test]
    fn a_directory_is_for_whom_its_mode_says() {
        let (owner, mut member) = (user(7), user(8));
        member.groups.push(9);
        for (rights, mode, may) in [
            (&owner, 0o300, true),
            (&owner, 0o077, false),
            (&member, 0o030, true),
            (&member, 0o703, false),
            (&root(), 0, true),
        ] {
            assert_eq!(rights.may_make_in((7, 9), mode), may, "{mode:o}");
        }
        assert!(!user(10).may_make_in((7, 9), 0o775));
    }

    const SETPCAP: u64 = 1 << CAP_SETPCAP;
}
