//! Who a program is, what it is called, and whom it belongs to.

use std::ffi::OsStr;

use super::Command;

impl Command {
    /// What it is told that it is called, in place of the program's name.
    pub fn arg0(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.arg0 = Some(arg.as_ref().to_owned());
        self
    }

    /// Its user, for all of real, effective and saved. If this process is root and [`groups`](Self::groups)
    /// says nothing, it has no supplementary groups, as std's; its group is this process's, unless
    /// [`gid`](Self::gid) says otherwise.
    ///
    /// In the child the groups are set first, then the group, then the user; its directory, the program and
    /// what else is opened by a path are opened as that user.
    ///
    /// [`spawn`](Self::spawn) fails with `PermissionDenied` before a process is made if this process could
    /// not become that user itself at that moment, for want of `CAP_SETUID` or `CAP_SETGID`: then the error
    /// has a [`SpawnError::Rights`](crate::SpawnError::Rights) inside, with
    /// [`Right::Become`](crate::Right::Become), or with [`Right::Reach`](crate::Right::Reach) if the
    /// forkserver could not end such a child.
    pub fn uid(&mut self, id: u32) -> &mut Self {
        self.who.uid = Some(id);
        self
    }

    /// Its group, for all of real, effective and saved. See [`uid`](Self::uid).
    pub fn gid(&mut self, id: u32) -> &mut Self {
        self.who.gid = Some(id);
        self
    }

    /// Its supplementary groups, these and no others. See [`uid`](Self::uid).
    pub fn groups(&mut self, groups: &[u32]) -> &mut Self {
        self.who.groups = Some(groups.to_vec());
        self
    }

    /// The process group that it joins; 0, the default, is one of its own.
    ///
    /// In one that others have made there is more than it: what it leaves in there is not ended with it,
    /// unless it carries the mark or is the last of this process's programs in there. With the number of
    /// this process's group, Ctrl-C reaches it too.
    ///
    /// [`spawn`](Self::spawn) fails with `EPERM` if there is no such group in the forkserver's session, and in an
    /// actor if the actor is confined or the group is neither its own nor that of its own children. It fails
    /// with `EINVAL` if the number is negative, and together with [`setsid`](Self::setsid), [`pty`](Self::pty),
    /// [`detach`](Self::detach) or [`foreground`](Self::foreground).
    pub fn process_group(&mut self, pgroup: i32) -> &mut Self {
        self.group = (pgroup != 0).then_some(pgroup);
        self
    }

    /// A session of its own, so that it has no terminal, if not by opening one. In all else it is treated
    /// as other programs: [`detach`](Self::detach) is what lets it run on.
    pub fn setsid(&mut self, yes: bool) -> &mut Self {
        self.session = yes;
        self
    }

    /// A terminal of its own, of that size, in a session of its own: that of its stdin, stdout and stderr of
    /// which nothing else was said. Our side is [`Child::pty`](super::super::Child::pty), a
    /// [`Pty`](super::super::Pty). Where nobody can read that, in [`status`](Self::status) and
    /// [`output`](Self::output), what the program writes to it is thrown away.
    ///
    /// [`spawn`](Self::spawn) fails with `EINVAL` together with [`foreground`](Self::foreground) or a
    /// [`process_group`](Self::process_group), with `ENOTTY` if something else was said of all three, and with
    /// what the kernel says where there are no terminals to be had.
    pub fn pty(&mut self, rows: u16, columns: u16) -> &mut Self {
        self.pty = Some((rows, columns));
        self
    }
}
