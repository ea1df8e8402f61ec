//! The part of HTTP/1.1 that is spoken (RFC 9112): one request on a connection, then its end.

/// What is answered, first of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    UriTooLong,
    HeadersTooLarge,
}

impl Status {
    /// Code and reason (RFC 9110, section 15).
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::UriTooLong => "414 URI Too Long",
            Self::HeadersTooLarge => "431 Request Header Fields Too Large",
        }
    }
}

/// What has come so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request<'r> {
    /// There must be more.
    Incomplete,
    /// Somebody wants to have what is at this path, as it is in the request.
    Get(&'r [u8]),
    /// Somebody wants a token, to show it with what is asked for afterwards.
    Token,
    /// It is answered so.
    Refused(Status),
}

/// Where clients ask for a token.
const TOKEN: &[u8] = b"/latest/api/token";

/// What `bytes` are, the first of a connection; `full`: no more will come, there is no room.
pub(super) fn parse(bytes: &[u8], full: bool) -> Request<'_> {
    let line_end = find(bytes, b"\r\n");
    if find(bytes, b"\r\n\r\n").is_none() {
        return match line_end {
            _ if !full => Request::Incomplete,
            Some(_) => Request::Refused(Status::HeadersTooLarge),
            None => Request::Refused(Status::UriTooLong),
        };
    }
    let line = line_end.and_then(|end| bytes.get(..end)).unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Request::Refused(Status::BadRequest);
    };
    let is_method = !method.is_empty() && method.iter().all(u8::is_ascii_uppercase);
    let is_target = target.starts_with(b"/") && target.iter().all(u8::is_ascii_graphic);
    let is_version = matches!(version, b"HTTP/1.0" | b"HTTP/1.1");
    if !is_method || !is_target || !is_version {
        return Request::Refused(Status::BadRequest);
    }
    // Parameters mean nothing here.
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    match method {
        b"GET" => Request::Get(path),
        b"PUT" if path == TOKEN => Request::Token,
        _ => Request::Refused(Status::MethodNotAllowed),
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_understood_when_its_headers_have_ended_and_not_before() {
        let whole = b"GET /a/b?c=d HTTP/1.1\r\nHost: x\r\n\r\nrest";
        for len in 0..whole.len() - 4 {
            assert_eq!(parse(&whole[..len], false), Request::Incomplete);
        }
        assert_eq!(parse(whole, false), Request::Get(b"/a/b"));
        assert_eq!(parse(b"GET / HTTP/1.0\r\n\r\n", true), Request::Get(b"/"));
        let token =
            b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
        assert_eq!(parse(token, false), Request::Token);
    }

    #[test]
    fn what_is_not_served_has_its_own_answer() {
        let refused = |line: &[u8]| match parse(&[line, b"\r\n\r\n"].concat(), false) {
            Request::Refused(status) => status,
            other => panic!("{other:?}"),
        };
        for method in ["HEAD", "POST", "PUT", "DELETE", "PATCH"] {
            let line = format!("{method} / HTTP/1.1");
            assert_eq!(refused(line.as_bytes()), Status::MethodNotAllowed);
        }
        let junk: [&[u8]; 9] = [
            b"",
            b"GET",
            b"GET /",
            b"GET  / HTTP/1.1",
            b"get / HTTP/1.1",
            b"GET a HTTP/1.1",
            b"GET /\x01 HTTP/1.1",
            b"PRI * HTTP/2.0",
            b"GET / HTTP/1.1 x",
        ];
        for line in junk {
            assert_eq!(refused(line), Status::BadRequest, "{line:?}");
        }
    }

    #[test]
    fn what_is_longer_than_there_is_room_for_is_refused() {
        let line = [b"GET /".as_slice(), &[b'a'; 100]].concat();
        assert_eq!(parse(&line, true), Request::Refused(Status::UriTooLong));
        let headers = b"GET / HTTP/1.1\r\nA: b\r\nC:";
        assert_eq!(parse(headers, true), Request::Refused(Status::HeadersTooLarge));
    }
}
