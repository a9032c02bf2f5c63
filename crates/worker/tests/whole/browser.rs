//! A real browser, driven by the DevTools protocol over a pipe.
#![expect(clippy::indexing_slicing, reason = "a field that JSON lacks is null, so it cannot panic")]

use std::env;
use std::io::{BufRead, BufReader, Write, stderr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::setting::PATIENCE;

const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const FLAGS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
];
/// The pipe is expected as the descriptors 3 and 4.
const START: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null"#;

/// The browser of this machine. Where there is none, it is said that `what` did not run, which on GitHub is a failure.
pub(crate) fn program(what: &str) -> Result<Option<PathBuf>> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = env::split_paths(&path).collect();
    let named = NAMES.iter().flat_map(|name| directories.iter().map(move |directory| directory.join(name)));
    let found = named.into_iter().find(|program| program.is_file());
    if found.is_none() {
        let decides = env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true");
        ensure!(!decides, "there is no chromium, and here every test must run");
        // Not by a macro, whose output of a test that passes is not shown.
        writeln!(stderr(), "NOT RUN: {what}. It did not pass; run it where there is chromium.")?;
    }
    Ok(found)
}

/// A browser with one page. It ends when this value is dropped.
pub(crate) struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    sent: u64,
    session: Value,
    /// What the page did meanwhile.
    events: Vec<Value>,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn start(program: PathBuf) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", START]).arg(program).args(FLAGS);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        let mut child = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let commands = child.stdin.take().context("no pipe to the browser")?;
        let mut answers = BufReader::new(child.stdout.take().context("no pipe from the browser")?);
        let (sender, messages) = channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while answers.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                let json = message.strip_suffix(&[0]).unwrap_or(&message);
                if !serde_json::from_slice(json).is_ok_and(|json| sender.send(json).is_ok()) {
                    return;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            child,
            commands,
            messages,
            sent: 0,
            session: Value::Null,
            events: Vec::new(),
            _profile: profile,
        };
        let page = browser.call("Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": page["targetId"], "flatten": true});
        browser.session = browser.call("Target.attachToTarget", attach)?["sessionId"].clone();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Has it show pages in this size, on a phone or not, in dark or in light.
    pub(crate) fn look(&mut self, (width, height): (u32, u32), scale: u32, scheme: &str) -> Result<()> {
        let mobile = width < 600;
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile});
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}))?;
        Ok(())
    }

    /// Opens an address, and waits until it has been loaded.
    pub(crate) fn open(&mut self, address: &str) -> Result<()> {
        self.events.retain(|event| event["method"] != "Page.loadEventFired");
        let opened = self.call("Page.navigate", json!({"url": address}))?;
        ensure!(opened.get("errorText").is_none(), "{address}: {opened}");
        self.loaded()
    }

    /// Waits until a page has been loaded.
    pub(crate) fn loaded(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let place = self.events.iter().position(|event| event["method"] == "Page.loadEventFired");
            if let Some(place) = place {
                self.events.remove(place);
                return Ok(());
            }
            let event = self.receive(end).context("no page was loaded")?;
            self.events.push(event);
        }
    }

    /// What an expression of JavaScript comes to.
    pub(crate) fn eval(&mut self, expression: &str) -> Result<Value> {
        let ask = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", ask)?;
        ensure!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression of JavaScript is true.
    pub(crate) fn until(&mut self, expression: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.eval(expression)? != true {
            if Instant::now() > end {
                let shown = self.eval("document.body.innerText")?;
                bail!("{expression} did not come about: {shown}");
            }
            thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(())
    }

    /// Presses a key.
    pub(crate) fn press(&mut self, key: &str) -> Result<()> {
        let code = if key == "Tab" { 9 } else { 13 };
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event =
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
            self.call("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Types a text where the focus is.
    pub(crate) fn write(&mut self, text: &str) -> Result<()> {
        self.call("Input.insertText", json!({"text": text})).map(drop)
    }

    /// What the page shows, as PNG.
    pub(crate) fn picture(&mut self) -> Result<Vec<u8>> {
        let picture =
            self.call("Page.captureScreenshot", json!({"format": "png", "optimizeForSpeed": false}))?;
        Ok(BASE64_STANDARD.decode(picture["data"].as_str().context("no picture")?)?)
    }

    /// What went wrong on the pages since this was last asked: errors, refusals of the policy, dialogs.
    pub(crate) fn complaints(&mut self) -> Result<Vec<Value>> {
        // Whatever it has told before this answer has come.
        self.eval("0")?;
        let told = [
            "Log.entryAdded",
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Page.javascriptDialogOpening",
        ];
        let events = std::mem::take(&mut self.events);
        Ok(events.into_iter().filter(|event| told.iter().any(|method| event["method"] == *method)).collect())
    }

    /// Gives a command, and waits for its answer.
    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.sent += 1;
        let mut command = json!({"id": self.sent, "method": method, "params": parameters});
        if !self.session.is_null() {
            command["sessionId"] = self.session.clone();
        }
        write!(self.commands, "{command}\0")?;
        self.commands.flush()?;
        let end = Instant::now() + PATIENCE;
        loop {
            let message = self.receive(end).with_context(|| format!("{method} is not answered"))?;
            if message["id"] == self.sent {
                ensure!(message.get("error").is_none(), "{method}: {message}");
                return Ok(message["result"].clone());
            }
            self.events.push(message);
        }
    }

    fn receive(&mut self, end: Instant) -> Result<Value> {
        Ok(self.messages.recv_timeout(end.saturating_duration_since(Instant::now()))?)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // All that it started is in its group.
        if let Ok(id) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}
