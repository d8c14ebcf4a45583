//! What is read and written, in every rhythm.

use proptest::{prelude::*, test_runner::Config};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Builder,
    time::timeout,
};

use super::*;

/// Such a connection is counted nowhere any more, and holds two descriptors.
#[tokio::test]
async fn who_has_gone_leaves_nothing_that_waits_for_a_reader() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut socket = Socket::new(ours).unwrap();
    let shared = Arc::downgrade(&socket.shared);
    let filling = async { while socket.write_all(&[0; KEPT]).await.is_ok() {} };
    timeout(Duration::from_millis(300), filling).await.expect_err("nobody reads");
    drop(socket);
    let gone = async {
        while shared.strong_count() > 0 {
            sleep(PAUSE).await;
        }
    };
    timeout(Duration::from_secs(5), gone).await.expect("it waits though it has gone");
    drop(theirs);
}

/// How long anything may take before it is taken to hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sizes in turn, and after which of them others have their turn.
type Rhythm = Vec<(usize, bool)>;

fn rhythms() -> impl Strategy<Value = Rhythm> {
    let most = prop::sample::select(vec![1_usize, 9, 1000, 8 << 10, 16 << 10, 64 << 10, 300 << 10]);
    let size = most.prop_flat_map(|most| 1..=most);
    prop::collection::vec((size, any::<bool>()), 1..12)
}

fn byte(place: usize) -> u8 {
    (place.wrapping_mul(31) >> 3) as u8
}

async fn says(mut to: impl AsyncWrite + Unpin, rhythm: Rhythm) {
    let mut said = 0;
    for (size, pause) in rhythm {
        let piece: Vec<u8> = (said..said + size).map(byte).collect();
        to.write_all(&piece).await.unwrap();
        said += size;
        if pause {
            yield_now().await;
        }
    }
    to.shutdown().await.unwrap();
}

/// Returns how much was heard before the end.
async fn hears(mut from: impl AsyncRead + Unpin, rhythm: Rhythm) -> usize {
    let (mut heard, mut room) = (0, vec![0; 300 << 10]);
    for (size, pause) in rhythm.into_iter().cycle() {
        let read = from.read(&mut room[..size.max(500)]).await.unwrap();
        if read == 0 {
            break;
        }
        assert!(room[..read].iter().zip(heard..).all(|(one, place)| *one == byte(place)));
        heard += read;
        if pause {
            yield_now().await;
        }
    }
    heard
}

fn total(rhythm: &Rhythm) -> usize {
    rhythm.iter().map(|(size, _)| size).sum()
}

proptest! {
    #![proptest_config(Config::with_cases(48))]

    /// Whatever is written and read in whatever pieces, both ways at once: all of it arrives, in
    /// order, and its end after it.
    #[test]
    fn nothing_is_lost_and_nobody_hangs(
        says_here in rhythms(), hears_there in rhythms(),
        says_there in rhythms(), hears_here in rhythms(),
        threads in 1..=2usize,
    ) {
        let expected = (total(&says_here), total(&says_there));
        let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
        let arrived = runtime.block_on(async {
            let (here, there) = UnixStream::pair().unwrap();
            let (hear, say) = tokio::io::split(Socket::new(here).unwrap());
            let (there_hear, there_say) = there.into_split();
            let speakers = [
                tokio::spawn(says(say, says_here)),
                tokio::spawn(says(there_say, says_there)),
            ];
            let there = tokio::spawn(hears(there_hear, hears_there));
            let here = tokio::spawn(hears(hear, hears_here));
            let all = async {
                for speaker in speakers {
                    speaker.await.unwrap();
                }
                (there.await.unwrap(), here.await.unwrap())
            };
            timeout(PATIENCE, all).await.expect("it hangs")
        });
        prop_assert_eq!(arrived, expected);
    }
}
