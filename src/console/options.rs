//! The console's options among the hypervisor's arguments.

use super::Settings;

impl Settings {
    /// Takes the console's options out of `bootargs`; the last of several counts.
    ///
    /// - `sparkler.console=plain`: no colours; `sparkler.console=colour`: colours, the default.
    /// - `sparkler.escape=N`: the escape key is the character with this number, decimal or `0x`
    ///   hexadecimal, 1 to 127; 0 for none. 29 (0x1d), Ctrl-\], is the default.
    ///
    /// # Errors
    /// The first word that is none of these.
    pub fn parse(mut self, bootargs: &str) -> Result<Self, &str> {
        for word in bootargs.split(' ') {
            if let Some(value) = word.strip_prefix("sparkler.console=") {
                self.colours = match value {
                    "plain" => false,
                    "colour" => true,
                    _ => return Err(word),
                };
            } else if let Some(value) = word.strip_prefix("sparkler.escape=") {
                let number = match value.strip_prefix("0x") {
                    Some(digits) => u8::from_str_radix(digits, 16),
                    None => value.parse(),
                };
                self.escape = match number {
                    Ok(0) => None,
                    Ok(key @ 1..=127) => Some(key),
                    _ => return Err(word),
                };
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::clock::Frequency;

    fn parse(bootargs: &str) -> Result<(bool, Option<u8>), &str> {
        let settings = Settings::new(Frequency::new(1000).unwrap()).parse(bootargs)?;
        Ok((settings.colours, settings.escape))
    }

    #[test]
    fn words_of_others_change_nothing() {
        assert_eq!(parse(""), Ok((true, Some(0x1D))));
        assert_eq!(
            parse("console=ttyAMA0 plain escape=1 sparkler.log=debug"),
            Ok((true, Some(0x1D)))
        );
    }

    #[test]
    fn colours_and_the_escape_key_can_be_chosen() {
        assert_eq!(parse("sparkler.console=plain sparkler.escape=1"), Ok((false, Some(1))));
        assert_eq!(parse("a sparkler.escape=0x14"), Ok((true, Some(0x14))));
        assert_eq!(parse("sparkler.escape=5 sparkler.escape=0"), Ok((true, None)));
    }

    #[test]
    fn what_means_nothing_is_named() {
        for word in [
            "sparkler.console=",
            "sparkler.console=red",
            "sparkler.escape=",
            "sparkler.escape=128",
            "sparkler.escape=^]",
            "sparkler.escape=-1",
            "sparkler.escape=0x100",
        ] {
            assert_eq!(parse(&format!("quiet {word} loud")), Err(word));
        }
    }
}
