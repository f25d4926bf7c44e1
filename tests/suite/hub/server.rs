//! A Hub of one repository on this machine, with faults to order.

use super::{COMMIT, REPO, digest, is_large};
use longburn::models::hub::{FetchEvent, HubConfig};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What the server does with a request.
pub enum Act {
    /// As the Hub would.
    Serve,
    /// These bytes in place of the file's, whole and with their own length.
    Bytes(Vec<u8>),
    /// So many bytes of the file, then nothing more, though all are promised.
    Cut(usize),
    /// Nothing, for a long time.
    Silence,
    /// A status with headers.
    Status(u16, Vec<(&'static str, String)>),
}

/// Of a request: method, path, how many of the same came before, token.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub before: usize,
    pub token: Option<&'a str>,
}

/// Lines that a download says.
#[derive(Default)]
pub struct Notes(pub Vec<String>);

impl Notes {
    pub fn watch(&mut self) -> impl FnMut(FetchEvent) {
        move |event| {
            if let FetchEvent::Note(line) = event {
                self.0.push(line);
            }
        }
    }
}

type Hook = dyn Fn(&Request<'_>) -> Act + Send + Sync;

pub struct Server {
    pub endpoint: String,
    state: Arc<State>,
}

struct State {
    /// The same server by another name, as large storage has: clients keep their token to
    /// themselves there.
    elsewhere: String,
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    commit: Mutex<String>,
    log: Mutex<Vec<String>>,
    hook: Box<Hook>,
}

impl Server {
    pub fn new(
        files: BTreeMap<String, Vec<u8>>,
        hook: impl Fn(&Request<'_>) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            elsewhere: endpoint.replace("127.0.0.1", "localhost"),
            files: Mutex::new(files),
            commit: Mutex::new(COMMIT.into()),
            log: Mutex::default(),
            hook: Box::new(hook),
        });
        let served = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = served.clone();
                // Whoever hangs up has seen enough.
                thread::spawn(move || _ = state.answer(stream));
            }
        });
        Self { endpoint, state }
    }

    /// A server without faults.
    pub fn sound(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self::new(files, |_| Act::Serve)
    }

    pub fn hub(&self, cache: &Path) -> HubConfig {
        let config = HubConfig::new().with_cache(cache).with_offline(false);
        config.with_endpoint(&self.endpoint).with_patience(Duration::from_secs(20))
    }

    /// `METHOD path` of all requests until now.
    pub fn log(&self) -> Vec<String> {
        self.state.log.lock().unwrap().clone()
    }

    /// How often the bytes of `name` were asked for.
    pub fn downloads(&self, name: &str) -> usize {
        let wanted = [format!("GET /cdn/{name}"), format!("GET /{REPO}/resolve/{COMMIT}/{name}")];
        let at = usize::from(!is_large(name));
        self.log().iter().filter(|line| **line == wanted[at]).count()
    }

    /// A commit in which one file is another.
    pub fn commit(&self, commit: &str, name: &str, bytes: Vec<u8>) {
        *self.state.commit.lock().unwrap() = commit.into();
        self.state.files.lock().unwrap().insert(name.into(), bytes);
    }
}

impl State {
    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let mut token = None;
        for line in lines {
            let line = line?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(": Bearer ")
                && name.eq_ignore_ascii_case("authorization")
            {
                token = Some(value.to_string());
            }
        }
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let path = target.split('?').next().unwrap_or("");
        let entry = format!("{method} {path}");
        let before = {
            let mut log = self.log.lock().unwrap();
            let before = log.iter().filter(|line| **line == entry).count();
            log.push(entry);
            before
        };
        let act = (self.hook)(&Request { method, path, before, token: token.as_deref() });
        let mut out = Answer { stream, head: method == "HEAD" };
        if let Act::Silence = act {
            thread::sleep(Duration::from_secs(30));
            return Ok(());
        }
        if let Act::Status(status, headers) = act {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.clone())).collect();
            return out.send(status, &headers, b"{\"error\":\"as ordered\"}", usize::MAX);
        }
        self.route(path, act, &mut out)
    }

    fn route(&self, path: &str, act: Act, out: &mut Answer) -> std::io::Result<()> {
        let (files, commit) =
            (self.files.lock().unwrap().clone(), self.commit.lock().unwrap().clone());
        let api = format!("/api/models/{REPO}/");
        if path.starts_with(&format!("{api}revision/")) {
            let info = json!({ "id": REPO, "sha": commit }).to_string();
            return out.send(200, &[], info.as_bytes(), usize::MAX);
        }
        if path == format!("{api}tree/{commit}") {
            let list: Vec<_> = files.iter().map(|(name, bytes)| entry(name, bytes)).collect();
            return out.send(200, &[], json!(list).to_string().as_bytes(), usize::MAX);
        }
        let resolve = format!("/{REPO}/resolve/{commit}/");
        let (name, on_cdn) = match (path.strip_prefix(&resolve), path.strip_prefix("/cdn/")) {
            (Some(name), _) => (name, false),
            (_, Some(name)) => (name, true),
            _ => ("", false),
        };
        let Some(bytes) = files.get(name) else {
            let headers = [("X-Error-Code", "EntryNotFound".to_string())];
            return out.send(404, &headers, b"", usize::MAX);
        };
        let etag = format!("\"{}\"", digest(name, bytes));
        let commit = ("X-Repo-Commit", commit);
        if is_large(name) && !on_cdn {
            // As large storage does: the digest here, the bytes elsewhere.
            let headers = [
                commit,
                ("X-Linked-Etag", etag),
                ("X-Linked-Size", bytes.len().to_string()),
                ("Location", format!("{}/cdn/{name}?signature=secret", self.elsewhere)),
            ];
            return out.send(302, &headers, b"", usize::MAX);
        }
        let headers = match on_cdn {
            true => vec![("ETag", "\"of-the-cdn\"".to_string())],
            false => vec![commit, ("ETag", etag)],
        };
        match act {
            Act::Bytes(other) => out.send(200, &headers, &other, usize::MAX),
            Act::Cut(length) => out.send(200, &headers, bytes, length),
            _ => out.send(200, &headers, bytes, usize::MAX),
        }
    }
}

/// A line of the Hub's list of files.
fn entry(name: &str, bytes: &[u8]) -> serde_json::Value {
    let (size, digest) = (bytes.len(), digest(name, bytes));
    match is_large(name) {
        // `oid` is that of the pointer in git.
        true => json!({
            "type": "file", "path": name, "size": size,
            "oid": "89abcdef0123456789abcdef0123456789abcdef",
            "lfs": { "oid": digest, "size": size, "pointerSize": 134 },
        }),
        false => json!({ "type": "file", "path": name, "size": size, "oid": digest }),
    }
}

struct Answer {
    stream: TcpStream,
    head: bool,
}

impl Answer {
    /// At most `most` bytes of the body, whose length is promised in full.
    fn send(
        &mut self,
        status: u16,
        headers: &[(&str, String)],
        body: &[u8],
        most: usize,
    ) -> std::io::Result<()> {
        let mut head = format!(
            "HTTP/1.1 {status} as it is\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        self.stream.write_all(format!("{head}\r\n").as_bytes())?;
        if !self.head {
            self.stream.write_all(&body[..body.len().min(most)])?;
        }
        self.stream.flush()
    }
}
