//! Any bytes as a line on the control socket: read, or refused with an answer that can be read.

#![no_main]

use control_protocol::{Answer, read_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    match read_request(line) {
        // What was understood is understood the same when it is written out.
        Ok(request) => {
            let again = read_request(request.to_line().trim_end().as_bytes());
            assert_eq!(again.as_ref(), Ok(&request));
        }
        Err(answer) => {
            let text = answer.to_line();
            assert_eq!(Answer::from_line(text.as_bytes()).expect("an answer can be read"), answer);
        }
    }
});
