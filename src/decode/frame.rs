//! The gRPC length-prefixed message (gRPC over HTTP/2, "Requests").

use crate::refusal::{Code, Refusal};

/// Largest CRI message, in bytes: the bound of kubelet and containerd.
pub const MAX_MESSAGE: usize = 16 << 20;

/// The five bytes before each message: a compression flag and a big-endian length.
pub(crate) const PREFIX: usize = 5;

/// Takes the one message out of the body of a unary call.
pub(crate) fn unframe(body: &[u8]) -> Result<&[u8], FrameError> {
    let (prefix, message) = body.split_at_checked(PREFIX).ok_or(FrameError::Truncated)?;
    if prefix[0] != 0 {
        return Err(FrameError::Compressed);
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if length > MAX_MESSAGE {
        return Err(FrameError::Long(length));
    }
    if message.len() != length {
        return Err(FrameError::Length { announced: length, carried: message.len() });
    }
    Ok(message)
}

/// The one message in the body of a request.
///
/// # Errors
///
/// `malformed_request` or `limit_exceeded`, with the method's name.
pub fn request<'body>(method: &str, body: &'body [u8]) -> Result<&'body [u8], Refusal> {
    unframe(body).map_err(|error| {
        let code = match error {
            FrameError::Long(_) => Code::LimitExceeded,
            _ => Code::MalformedRequest,
        };
        Refusal::new(code, format!("{method} request: {error}"))
    })
}

/// Why bytes are not one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the gRPC frame is cut short")]
    Truncated,
    #[error("the message is compressed, which CRI clients and this server do not agree on")]
    Compressed,
    #[error("{0} bytes, {MAX_MESSAGE} are allowed")]
    Long(usize),
    #[error("the gRPC frame announces {announced} bytes and carries {carried}")]
    Length { announced: usize, carried: usize },
}

/// Puts one message into a frame.
pub fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len())
        .expect("a message is at most MAX_MESSAGE, bounded before it was decoded");
    let mut body = Vec::with_capacity(PREFIX + message.len());
    body.push(0);
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(message);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_holds_one_message() {
        assert_eq!(frame(b"abc"), b"\0\0\0\0\x03abc");
        assert_eq!(unframe(&frame(b"abc")), Ok(b"abc".as_slice()));
        assert_eq!(unframe(&frame(b"")), Ok(b"".as_slice()));
    }

    #[test]
    fn a_broken_frame_is_refused_with_the_reason() {
        let cases: [(&[u8], Code, &str); 6] = [
            (b"", Code::MalformedRequest, "the gRPC frame is cut short"),
            (b"\0\0\0\0", Code::MalformedRequest, "the gRPC frame is cut short"),
            (
                b"\0\0\0\0\x02a",
                Code::MalformedRequest,
                "the gRPC frame announces 2 bytes and carries 1",
            ),
            (
                b"\0\0\0\0\x01ab",
                Code::MalformedRequest,
                "the gRPC frame announces 1 bytes and carries 2",
            ),
            (
                b"\x01\0\0\0\x01a",
                Code::MalformedRequest,
                "the message is compressed, which CRI clients and this server do not agree on",
            ),
            (b"\0\xff\0\0\0", Code::LimitExceeded, "4278190080 bytes, 16777216 are allowed"),
        ];
        for (body, code, message) in cases {
            let refusal = Refusal::new(code, format!("PullImage request: {message}"));
            assert_eq!(request("PullImage", body), Err(refusal));
        }
    }
}
