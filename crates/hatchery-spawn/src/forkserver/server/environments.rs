//! The variables of clients, as they have told them. Most have the same ones, which are kept once.

use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;

use super::Server;
use crate::forkserver::environment::MAX_ENVIRONMENT;
use crate::forkserver::memory;
use crate::sys::environ::Entries;

impl Server {
    /// Takes what a client has told, in the message or in the memory beside it. `false`: it is none.
    ///
    /// Memory that found no room in our table leaves it without any: its next request is refused, and
    /// then it tells them again.
    pub(super) fn take_environment(
        &mut self,
        fd: RawFd,
        told: Vec<u8>,
        memory: Option<OwnedFd>,
        truncated: bool,
    ) -> bool {
        let texts = match memory {
            Some(memory) => memory::read(&memory, MAX_ENVIRONMENT).ok(),
            None => Some(told),
        };
        let Some(texts) = texts.filter(|texts| texts.last().is_none_or(|last| *last == 0)) else {
            return false;
        };
        let environment = (!truncated).then(|| self.same_as_known(texts));
        if let Some(client) = self.clients.get_mut(&fd) {
            client.environment = environment;
        }
        true
    }

    /// Those of the root, or the last that anybody has told, if they are the same.
    fn same_as_known(&mut self, texts: Vec<u8>) -> Rc<Entries> {
        let root = self.clients.get(&self.root_socket);
        let root = root.and_then(|root| root.environment.as_ref());
        let known = [root, self.last_environment.as_ref()].into_iter().flatten();
        let same = known.into_iter().find(|known| known.texts() == texts).cloned();
        let environment = same.unwrap_or_else(|| Rc::new(Entries::new(texts)));
        self.last_environment = Some(environment.clone());
        environment
    }
}
