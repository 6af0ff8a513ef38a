//! Ctrl-C: the first one asks to stop, the second one stops.

use airllm::Cancel;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// In a chat, what an interruption means.
static CHAT: Mutex<Chat> = Mutex::new(Chat::Elsewhere);

/// Where a chat is.
#[derive(Debug)]
pub enum Chat {
    /// Not begun: an interruption ends the command.
    Elsewhere,
    /// It waits for a message: an interruption ends the process, for there is nothing to put in order.
    Listening,
    /// It answers: an interruption sets the flag of this answer, a second one ends the process.
    Answering(Cancel),
}

/// Says where the chat is from now on.
pub fn chat(state: Chat) {
    *CHAT.lock().unwrap_or_else(PoisonError::into_inner) = state;
}

/// A flag that is set by the first interruption (SIGINT, SIGTERM, SIGHUP). A second one ends the process at
/// once; what is on the disk is safe at any moment.
pub fn cancel_on_interrupt() -> Cancel {
    let cancel = Cancel::new();
    let flag = cancel.clone();
    static ASKED: AtomicBool = AtomicBool::new(false);
    let handler = move || {
        match &*CHAT.lock().unwrap_or_else(PoisonError::into_inner) {
            Chat::Elsewhere => {}
            Chat::Answering(answer) if !answer.is_stopped() => return answer.stop(),
            Chat::Answering(_) | Chat::Listening => {
                std::process::exit(i32::from(crate::exit::INTERRUPTED));
            }
        }
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(crate::exit::INTERRUPTED));
        }
        flag.stop();
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::warn!(%error, "Ctrl-C will end the program at once");
    }
    cancel
}

/// Ends the process if that was asked for. Only for work that reads: there is nothing to put in order.
pub fn leave_if(cancel: &Cancel) {
    if cancel.is_stopped() {
        std::process::exit(i32::from(crate::exit::INTERRUPTED));
    }
}
