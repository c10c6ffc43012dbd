//! A browser without a screen, spoken to over its pipes: what it shows, asks for and complains of.
//!
//! Left out on purpose: a driver or a protocol's client of its own. The few questions are JSON.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use leaseward_tests::Lab;
use serde_json::{Value, json};

/// A browser without a screen, spoken to over its pipes. It ends with this value.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Value,
    asked: u64,
    /// What pages complained of.
    pub(crate) complaints: Vec<String>,
    /// What pages asked for, by address.
    pub(crate) requests: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts it, if there is one on this machine.
    pub(crate) fn start(url: &str) -> Option<Self> {
        let profile = tempfile::tempdir().expect("a directory");
        // It reads questions from 3 and writes answers to 4.
        let script = "exec chromium --headless --no-sandbox --disable-gpu --window-size=1280,720 --no-first-run --disable-dev-shm-usage \
                      --remote-debugging-pipe --user-data-dir=\"$1\" 3<&0 4>&1 0</dev/null 1>/dev/null";
        let found = Command::new("sh").args(["-c", "command -v chromium"]).output().expect("a shell");
        if !found.status.success() {
            eprintln!("left out: there is no chromium here to look at the console with");
            return None;
        }
        let mut child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let to = child.stdin.take().expect("it is piped");
        let from = BufReader::new(child.stdout.take().expect("it is piped"));
        let (session, complaints, requests) = (Value::Null, Vec::new(), Vec::new());
        let mut browser = Self { child, to, from, session, asked: 0, complaints, requests, _profile: profile };
        let target = browser.ask("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        browser.session = browser.ask("Target.attachToTarget", &attach)["sessionId"].clone();
        for domain in ["Runtime.enable", "Log.enable", "Page.enable", "Network.enable"] {
            browser.ask(domain, &json!({}));
        }
        browser.ask("Page.navigate", &json!({ "url": url }));
        Some(browser)
    }

    /// Asks the browser, and notes what pages complain of meanwhile.
    pub(crate) fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.asked += 1;
        let mut question = json!({ "id": self.asked, "method": method, "params": params });
        if !self.session.is_null() {
            question["sessionId"] = self.session.clone();
        }
        self.to.write_all(format!("{question}\0").as_bytes()).expect("the browser listens");
        loop {
            let mut message = Vec::new();
            self.from.read_until(0, &mut message).expect("the browser speaks");
            assert_eq!(message.pop(), Some(0), "the browser ended");
            let message: Value = serde_json::from_slice(&message).expect("it speaks JSON");
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => self.complaints.push(message["params"].to_string()),
                Some("Log.entryAdded") if message["params"]["entry"]["level"] == "error" => {
                    self.complaints.push(message["params"]["entry"].to_string());
                }
                Some("Network.requestWillBeSent") => {
                    self.requests.extend(message["params"]["request"]["url"].as_str().map(ToOwned::to_owned));
                }
                _ => {}
            }
            if message["id"] == self.asked {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    pub(crate) fn evaluate(&mut self, script: &str) -> Value {
        let ask = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let answer = self.ask("Runtime.evaluate", &ask);
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].clone()
    }

    /// Opens another page of the console, as a link does.
    pub(crate) fn open(&mut self, hash: &str) {
        self.evaluate(&format!("location.hash = {}", json!(hash)));
    }

    pub(crate) fn text(&mut self) -> String {
        self.evaluate("document.body?.innerText ?? ''").as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the page has all of this, and returns its text.
    pub(crate) async fn until(&mut self, lab: &Lab, words: &[&str]) -> String {
        let browser = std::sync::Mutex::new(self);
        let look = async |_: &Lab| {
            let text = browser.lock().expect("nobody panics").text();
            words.iter().all(|word| text.contains(word)).then_some(text)
        };
        let seen = tokio::time::timeout(leaseward_tests::PATIENCE / 2, lab.until_some("the page", look)).await;
        seen.unwrap_or_else(|_| panic!("never {words:?} in:\n{}", browser.into_inner().expect("nobody panics").text()))
    }

    /// Waits until an expression of the page is true.
    pub(crate) async fn until_true(&mut self, lab: &Lab, expression: &str) {
        let browser = std::sync::Mutex::new(self);
        let look = async |_: &Lab| (browser.lock().expect("nobody panics").evaluate(expression) == true).then_some(());
        lab.until_some(expression, look).await;
    }

    /// Types where the cursor is.
    pub(crate) fn types(&mut self, text: &str) {
        self.ask("Input.insertText", &json!({ "text": text }));
    }

    /// Presses a key.
    pub(crate) fn key(&mut self, key: &str) {
        let mut event = json!({ "type": "keyDown", "key": key });
        if key.chars().count() == 1 {
            event["text"] = json!(key);
        }
        self.ask("Input.dispatchKeyEvent", &event);
        self.ask("Input.dispatchKeyEvent", &json!({ "type": "keyUp", "key": key }));
    }

    /// Gives the page so many pixels.
    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.ask("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Waits until times on the page went on and it asked nobody for that.
    pub(crate) async fn until_it_writes_the_time_and_asks_nothing(&mut self, lab: &Lab) {
        let browser = std::sync::Mutex::new((String::new(), 0, self));
        let look = async |_: &Lab| {
            let mut found = browser.lock().expect("nobody panics");
            let now = (found.2.text(), found.2.requests.len());
            let (wrote, asked) = (found.0 != now.0, found.0.is_empty() || found.1 != now.1);
            if wrote {
                (found.0, found.1) = now;
            }
            (wrote && !asked).then_some(())
        };
        lab.until_some("a page that writes the time and asks nothing", look).await;
    }

    /// Keeps a picture of the page where `LEASEWARD_SCREENSHOTS` says.
    pub(crate) fn picture(&mut self, name: &str) {
        if let Some(dir) = std::env::var_os("LEASEWARD_SCREENSHOTS") {
            let shot = self.ask("Page.captureScreenshot", &json!({ "captureBeyondViewport": true }));
            let bytes = BASE64_STANDARD.decode(shot["data"].as_str().expect("a picture")).expect("it is base64");
            fs::write(Path::new(&dir).join(format!("{name}.png")), bytes).expect("written");
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
