//! The arguments of a function that actors run: plain names and owned types.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens as _, quote};
use syn::spanned::Spanned as _;
use syn::{Error, FnArg, Ident, ItemFn, Pat, PatIdent, Result, Type, TypeReference};

use crate::function::GENERIC;

/// What a function takes.
pub(crate) struct Arguments<'a> {
    pub(crate) names: Vec<&'a Ident>,
    /// The names as the body has them: `mut` is its own business.
    pub(crate) patterns: Vec<TokenStream>,
    pub(crate) types: Vec<&'a Type>,
}

impl<'a> Arguments<'a> {
    /// # Errors
    /// What can't travel to another process, or has no plain name, with what to write instead.
    pub(crate) fn of(function: &'a ItemFn) -> Result<Self> {
        let mut arguments = Self { names: Vec::new(), patterns: Vec::new(), types: Vec::new() };
        for input in &function.sig.inputs {
            let typed = match input {
                FnArg::Typed(typed) => typed,
                FnArg::Receiver(receiver) => {
                    let what = "an actor runs functions without `self`: pass what the function needs as an \
                                argument";
                    return Err(Error::new(receiver.span(), what));
                }
            };
            let Pat::Ident(pattern) = &*typed.pat else {
                let what = "name the argument, and take it apart in the body: `let (a, b) = pair;`";
                return Err(Error::new(typed.pat.span(), what));
            };
            let PatIdent { ident, mutability, by_ref, subpat, .. } = pattern;
            if by_ref.is_some() || subpat.is_some() {
                let what = "name the argument plainly, and borrow or match it in the body";
                return Err(Error::new(pattern.span(), what));
            }
            owned(&typed.ty)?;
            arguments.names.push(ident);
            arguments.patterns.push(quote!(#mutability #ident));
            arguments.types.push(&typed.ty);
        }
        Ok(arguments)
    }
}

/// Refuses what only the caller's process holds, and what only the caller knows.
#[allow(clippy::wildcard_enum_match_arm, reason = "every other type, also of later Rust")]
fn owned(argument: &Type) -> Result<()> {
    match argument {
        Type::ImplTrait(generic) => Err(Error::new(generic.span(), GENERIC)),
        Type::Reference(reference) => {
            let (is, instead) = (reference.to_token_stream(), instead(reference));
            let what = format!(
                "an argument travels to another process, so its type must be owned: `{instead}` instead of \
                 `{}`",
                written(&is)
            );
            Err(Error::new_spanned(reference, what))
        }
        other if borrows(other.to_token_stream()) => {
            let what = "an argument travels to another process, so all of its type must be owned: without `&` \
                        and without lifetimes";
            Err(Error::new_spanned(other, what))
        }
        _ => Ok(()),
    }
}

/// The owned type that holds what a reference points to.
fn instead(reference: &TypeReference) -> String {
    if let Type::Slice(slice) = &*reference.elem {
        return format!("Vec<{}>", written(&slice.elem.to_token_stream()));
    }
    let name = written(&reference.elem.to_token_stream());
    match name.as_str() {
        "str" => "String".to_owned(),
        "Path" | "std::path::Path" => "std::path::PathBuf".to_owned(),
        "OsStr" | "std::ffi::OsStr" => "std::ffi::OsString".to_owned(),
        "CStr" | "std::ffi::CStr" => "std::ffi::CString".to_owned(),
        _ => name,
    }
}

/// As somebody would write it, without the blanks that tokens have between them.
fn written(tokens: &TokenStream) -> String {
    let text = tokens.to_string();
    ["& ", " ::", ":: ", " <", "< ", " >"]
        .into_iter()
        .fold(text, |text, blanks| text.replace(blanks, blanks.trim()))
}

/// Whether there is a reference or a lifetime somewhere in a type.
#[allow(clippy::wildcard_enum_match_arm, reason = "names and literals borrow nothing")]
fn borrows(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Punct(punct) => matches!(punct.as_char(), '&' | '\''),
        TokenTree::Group(group) => borrows(group.stream()),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(item: TokenStream) -> String {
        let function: ItemFn = syn::parse2(item).unwrap();
        Arguments::of(&function).err().unwrap().to_string()
    }

    #[test]
    fn an_owned_type_is_named_for_each_reference() {
        for (argument, instead) in [
            (quote!(&str), "`String` instead of `&str`"),
            (quote!(&'static [u8]), "`Vec<u8>`"),
            (quote!(&std::path::Path), "`std::path::PathBuf`"),
            (quote!(&mut Vec<Point>), "`Vec<Point>`"),
            (quote!(Option<&str>), "without `&`"),
            (quote!(std::borrow::Cow<'static, str>), "without lifetimes"),
        ] {
            let told = refusal(quote!(async fn f(x: #argument) {}));
            assert!(told.contains(instead), "{told}");
        }
    }

    #[test]
    fn a_name_may_be_mut() {
        let function: ItemFn = syn::parse2(quote!(
            async fn f(mut x: u8) {}
        ))
        .unwrap();
        let arguments = Arguments::of(&function).ok().unwrap();
        assert_eq!(arguments.patterns[0].to_string(), "mut x");
        assert_eq!(arguments.names[0], "x");
    }
}
